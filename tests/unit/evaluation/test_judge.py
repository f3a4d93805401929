"""A judge's preferences are what plain Transformers makes of both options, in both orders; wins are told by both."""

import numpy as np
import pytest
import torch

from scaleup.config.evaluation import PairwiseJudge
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.evaluation.judge import Judge, win_scores
from scaleup.plan.types import Plan
from scaleup.records.chats import Chat
from scaleup.train.job import Job
from tests.unit.data import tiny

TEMPLATE = "{prompt}: {first} or {second}?"
KEY = "evaluation.judge.model"


def judge_of(runtime, name="gpt2", **settings):
    told = PairwiseJudge(model=ModelConfig(path=f"builtin:tiny-{name}"), **{"template": TEMPLATE, **settings})
    config = EvaluateConfig.model_validate(
        {
            "stage": "evaluate",
            "name": "x",
            "model": {"path": "builtin:tiny-llama"},
            "data": {"test": ["a.jsonl"], "prompt": "{p}"},
            "evaluation": {"metrics": ["judge"], "judge": told.model_dump(), "batch_size": 3},
        }
    )
    facts = {KEY: tiny.facts(name)}
    plan = Plan(
        stage="evaluate", name="x", run_folder="x", groups=[], model=facts[KEY], models=facts, memory=[], notes=[]
    )
    return Judge(Job(config, plan, runtime, None), told, KEY)


@torch.no_grad()
def by_hand(name, text, options=("A", "B")):
    """The first option's share of the probability of both: of a message's answer, or of an encoder-decoder's."""
    model, tokenizer = tiny.model(name).eval(), tiny.tokenizer(name)
    logs = []
    for option in options:
        if name == "t5":
            ids, start = tokenizer(f" {option}")["input_ids"][:-1], 0
            source = torch.tensor([tokenizer(text)["input_ids"]])
            log = model(input_ids=source, labels=torch.tensor([ids])).logits[0].log_softmax(-1)
        else:
            asked = [{"role": "user", "content": text}]
            prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
            ids = tokenizer(prompt + option, add_special_tokens=False)["input_ids"]
            log = model(torch.tensor([ids])).logits[0].log_softmax(-1).roll(1, dims=0)
        logs.append(sum(log[place, ids[place]] for place in range(start, len(ids))))
    return torch.stack(logs).softmax(0)[0].item()


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_preferences_are_the_options_probabilities_in_both_orders(runtime, name):
    pairs = [("a", "yes", "no"), ("b", "", "x y"), ("c", "same", "same")]
    found = judge_of(runtime, name).preferences(*zip(*pairs, strict=True))
    for (prompt, one, other), (shown_first, shown_second) in zip(pairs, found, strict=True):
        assert shown_first == pytest.approx(by_hand(name, f"{prompt}: {one} or {other}?"), abs=1e-5)
        assert shown_second == pytest.approx(1 - by_hand(name, f"{prompt}: {other} or {one}?"), abs=1e-5)
    assert found[2].sum() == pytest.approx(1), "of two equal responses neither is better in both orders"


def test_an_encoder_decoder_judges_conversations_and_leaves_out_what_is_too_long(runtime):
    chat = Chat([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}])
    judge = judge_of(runtime, "t5", max_length=40)
    found = judge.preferences([chat, "a", "a"], ["yes", "b " * 60, "b"], ["no", "c", "c"])
    assert not np.isnan(found[[0, 2]]).any() and ((found[[0, 2]] > 0) & (found[[0, 2]] < 1)).all()
    plain = judge.preferences(["user: hi\n\nassistant: ho"], ["yes"], ["no"])
    assert plain[0] == pytest.approx(found[0], abs=1e-6), "its turns are what it reads"


def test_a_response_wins_that_is_better_in_both_orders():
    both, neither, by_order, unknown = [0.9, 0.6], [0.1, 0.4], [0.9, 0.2], [np.nan, np.nan]
    scores = win_scores(np.array([both, both, neither, by_order, [0.5, 0.5], unknown]))
    assert scores.result(0) == {"judge": (2 + 0 + 0.5 + 0.5) / 5, "judge_by_order": 1 / 5, "judge_left_out": 1}
    assert scores.by_row["judge"][:5].tolist() == [1, 1, 0, 0.5, 0.5] and np.isnan(scores.by_row["judge"][5])
    assert "judge_interval" in scores.result(20)
