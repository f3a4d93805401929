from typing import Any

import pytest
import torch

from scaleup.data.collate import pad
from scaleup.models.gumbel import GumbelMax
from scaleup.models.rollout import Sampling, respond
from scaleup.rl.experience import inputs_of
from scaleup.rl.policy import Policy
from tests.unit.rl.conftest import NAMES

TEXTS = ["hello there", "a", "some longer prompt", "b c"]
SEEDS = [(1, 0, 0, row) for row in range(4)]
CPU = torch.device("cpu")


def sampling(tokenizer: Any, **changes: Any) -> Sampling:
    settings = {
        "max_new_tokens": 8,
        "min_limit": None,
        "temperature": 0.8,
        "eos_ids": (tokenizer.eos_token_id,),
        "pad_id": tokenizer.pad_token_id,
    }
    return Sampling(**{**settings, **changes})


@pytest.mark.parametrize("name", NAMES)
def test_a_response_does_not_depend_on_its_neighbours(load: Any, name: str) -> None:
    model, tokenizer = load(name)
    policy = Policy(model, 0.8).eval()
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    together = respond(policy, prompts, SEEDS, sampling(tokenizer), CPU)
    for row in (1, 3):
        alone = respond(policy, [prompts[row]], [SEEDS[row]], sampling(tokenizer), CPU)
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert alone.lengths[0] == together.lengths[row]
    again = respond(policy, prompts, [(2, *seed[1:]) for seed in SEEDS], sampling(tokenizer), CPU)
    assert not torch.equal(again.tokens, together.tokens)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_tokens_are_drawn_from_what_training_sees(load: Any, name: str) -> None:
    """The forward pass that training takes gives each token the probability that it was drawn with."""
    model, tokenizer = load(name)
    policy = Policy(model, 0.8).eval()
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    drawn: list[dict[int, torch.Tensor]] = []
    call = GumbelMax.__call__

    class Kept(GumbelMax):
        def __call__(self, scores: torch.Tensor, rows: torch.Tensor, position: int) -> torch.Tensor:
            drawn.append(dict(zip(rows.tolist(), torch.log_softmax(scores / 0.8, -1), strict=True)))
            return call(self, scores, rows, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scaleup.models.rollout.GumbelMax", Kept)
        responses = respond(policy, prompts, SEEDS, sampling(tokenizer, min_limit=3), CPU)
    assert len(drawn[-1]) < len(prompts) == len(drawn[0]), "rows leave"
    inputs = inputs_of(prompts, responses.tokens, responses.lengths, tokenizer.pad_token_id, policy.is_seq2seq)
    with torch.no_grad():
        logprobs, *_ = policy("policy", **inputs)
    for row, column in inputs["response_mask"].nonzero().tolist():
        at_generation = drawn[column][row][responses.tokens[row, column]]
        assert torch.allclose(logprobs[row, column], at_generation, atol=1e-5)


def test_lengths_and_ends(load: Any) -> None:
    model, tokenizer = load("tiny-llama")
    policy = Policy(model, 0.8).eval()
    prompts = [tokenizer("a")["input_ids"]] * 256
    seeds = [(0, 0, 0, row) for row in range(256)]
    every = tuple(range(0, 259, 4))  # so that some end early
    responses = respond(policy, prompts, seeds, sampling(tokenizer, eos_ids=every, min_limit=3), CPU)
    for tokens, length, finished in zip(responses.tokens, responses.lengths, responses.finished, strict=True):
        ends = [int(token) in every for token in tokens[:length]]
        assert ends[:-1] == [False] * (int(length) - 1)
        assert ends[-1] == bool(finished)
        assert finished or length >= 3
        assert (tokens[length:] == tokenizer.pad_token_id).all()
    assert set(responses.lengths[~responses.finished].tolist()) == {3, 4, 5, 6, 7, 8}
    assert responses.finished.any()


def test_a_models_own_settings_do_not_bend_the_draws(load: Any) -> None:
    model, tokenizer = load("tiny-llama")
    policy = Policy(model, 0.8).eval()
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    plain = respond(policy, prompts, SEEDS, sampling(tokenizer), CPU)
    own = model.generation_config
    own.repetition_penalty, own.top_k, own.do_sample, own.min_new_tokens = 5.0, 1, True, 8
    bent = respond(policy, prompts, SEEDS, sampling(tokenizer), CPU)
    assert torch.equal(plain.tokens, bent.tokens)
    assert model.generation_config is own


def test_prompts_are_padded_on_their_side() -> None:
    ids, mask = pad([[1, 2, 3], [4]], 9, left=True)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = pad([[1, 2, 3], [4]], 9, left=False)
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_an_adapted_model_is_drawn_from_alike(load: Any, name: str) -> None:
    """PEFT's own `generate` puts the model's settings back, which may have no end at all."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load(name)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    plain = respond(Policy(model, 0.8).eval(), prompts, SEEDS, sampling(tokenizer), CPU)
    task = "SEQ_2_SEQ_LM" if name == "tiny-t5" else "CAUSAL_LM"
    adapted = get_peft_model(load(name)[0], LoraConfig(r=2, target_modules="all-linear", task_type=task))
    responses = respond(Policy(adapted, 0.8).eval(), prompts, SEEDS, sampling(tokenizer), CPU)
    assert torch.equal(responses.tokens, plain.tokens)
