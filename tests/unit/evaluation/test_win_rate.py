"""A judge's preferences are what plain Transformers makes of both options, in both orders; wins are told by both."""

import numpy as np
import pytest
import torch

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.evaluation import PairwiseJudge
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.evaluation.judging import Judgements
from scaleup.evaluation.win_rate import load_judge, questions, win_scores
from scaleup.plan.types import Plan
from scaleup.records.chats import Chat
from scaleup.train.job import Job
from tests.unit.data import tiny

TEMPLATE = "{prompt}: {first} or {second}?"
KEY = "evaluation.judge.model"


def asked(tmp_path, runtime, pairs, name="gpt2", **settings):
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
    judge = load_judge(Job(config, plan, runtime, RunFolder(tmp_path)), told)
    return judge([questions(told.template, *pair) for pair in pairs])


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
def test_preferences_are_the_options_probabilities_in_both_orders(runtime, name, tmp_path):
    pairs = [("a", "yes", "no"), ("b", "", "x y"), ("c", "same", "same")]
    found = 1 / (1 + np.exp(-asked(tmp_path, runtime, pairs, name).by_order))
    for (prompt, one, other), (shown_first, shown_second) in zip(pairs, found, strict=True):
        assert shown_first == pytest.approx(by_hand(name, f"{prompt}: {one} or {other}?"), abs=1e-5)
        assert shown_second == pytest.approx(1 - by_hand(name, f"{prompt}: {other} or {one}?"), abs=1e-5)
    assert found[2].sum() == pytest.approx(1), "of two equal responses neither is better in both orders"


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_conversations_are_read_as_their_turns_and_what_is_too_long_is_left_out(runtime, name, tmp_path):
    chat = Chat([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}])
    pairs = [(chat, "yes", "no"), ("a", "b " * 90, "c"), ("user: hi\n\nassistant: ho", "yes", "no")]
    found = asked(tmp_path, runtime, pairs, name, max_length=100).by_order
    assert np.isnan(found).tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert found[0] == pytest.approx(found[2], abs=1e-6)


def test_a_response_wins_that_is_better_in_both_orders():
    both, neither, by_order, unknown = [3, 1], [-3, -1], [2, -2], [np.nan, np.nan]
    odds = np.array([both, both, neither, by_order, [0, 0], unknown], float)
    logps = np.stack([odds, np.zeros_like(odds)], axis=2) * np.array([1, -1])[:, None]
    scores = win_scores(Judgements(logps))
    assert scores.result(0) == {"judge": (2 + 0 + 0.5 + 0.5) / 5, "judge_by_order": 1 / 5, "judge_left_out": 1}
    assert scores.by_row["judge"][:5].tolist() == [1, 1, 0, 0.5, 0.5] and np.isnan(scores.by_row["judge"][5])
    assert "judge_interval" in scores.result(20)
