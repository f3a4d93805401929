"""Weights gathered once for a rollout: then ranks generate as if each held the model, however many tokens, and go on
with shards afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scaleup.config.load import load_mapping
from scaleup.config.stages.sft import SFTConfig
from scaleup.distributed.runtime import Runtime
from scaleup.models.beside import unwrap
from scaleup.models.rollout import Sampling, respond
from scaleup.plan.deepspeed import deepspeed_settings
from scaleup.plan.types import GroupPlan
from scaleup.rl.experience import inputs_of
from scaleup.rl.policy import Policy
from tests.cli import differing
from tests.distributed.worlds import World, group_plan
from tests.unit.plan.conftest import RAW

CPU = torch.device("cpu")
PROMPTS = [[40, 41, 42], [50], [60, 7, 61, 62], [70, 71]]
SEEDS = [(3, row) for row in range(4)]
SAMPLING = Sampling(max_new_tokens=12, min_limit=None, temperature=1.0, eos_ids=(2,), pad_id=0)
STRATEGIES = ("zero3", "fsdp2")


def policy() -> Policy:
    """Its matrices have more elements than ZeRO-3 keeps whole in any case."""
    torch.manual_seed(0)
    shape = {"hidden_size": 160, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=800, pad_token_id=0, initializer_range=0.2, tie_word_embeddings=True, **shape)
    return Policy(LlamaForCausalLM(config), 1.0).eval()


def group(strategy: str, gathers: bool) -> GroupPlan:
    config = load_mapping(differing(RAW, {"train.max_grad_norm": 0})).config
    assert isinstance(config, SFTConfig)
    settings: dict[str, Any] = {"distributed_type": "FSDP", "engine": "FSDPModule"}
    if strategy == "zero3":
        settings = {"distributed_type": "DEEPSPEED", "engine": "DeepSpeedEngine", "zero_stage": 3}
        settings["deepspeed"] = deepspeed_settings(config, 3)
    return group_plan(strategy, 2).model_copy(
        update={"strategy": strategy, "gathers_for_generation": gathers, **settings}
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def start(strategy: str, main: Callable[[Runtime], Any], gathers: bool = True) -> World:
        worlds.append(World(tmp_path, strategy, 2, main, group(strategy, gathers)))
        return worlds[-1]

    yield start
    for each in worlds:
        each.end()


def prepared(runtime: Runtime) -> Any:
    model = policy()
    return runtime.prepare(model, torch.optim.SGD(model.parameters(), lr=0.5))[0]


def held(model: Any) -> int:
    """The elements of the weights that this rank holds."""
    parts = [getattr(part, "_local_tensor", part) for part in unwrap(model).policy.parameters()]
    return sum(part.numel() for part in parts)


def rollouts(runtime: Runtime) -> dict[str, Any]:
    """Before and after a training step; within each, rank 1 generates three batches and rank 0 one."""
    model = prepared(runtime)
    seen: dict[str, Any] = {"tokens": [], "held": [], "whole": [], "losses": []}
    for _ in range(2):
        model.eval()
        with runtime.generating(model, unwrap(model).policy) as together:
            assert not together
            for _ in range(1 + 2 * runtime.rank):
                drawn = respond(model, PROMPTS, SEEDS, SAMPLING, runtime.device, together)
            seen["whole"].append(held(model))
        seen["tokens"].append(drawn.tokens.tolist())
        seen["held"].append(held(model))
        seen["losses"].append(float(learned(runtime, model)))
    return seen


def learned(runtime: Runtime | None, model: Any) -> torch.Tensor:
    """A step on what every rank sees alike: plain gradient descent, by hand where there is no runtime."""
    answers = torch.tensor([[5, 6, 7]] * len(PROMPTS))
    inputs = inputs_of(PROMPTS, answers, torch.tensor([3, 1, 2, 3]), 0, False)
    model.train()
    loss = -model("policy", **inputs)[0].mean()
    if runtime is None:
        loss.backward()
        with torch.no_grad():
            for part in model.parameters():
                if part.grad is not None:
                    part.sub_(0.5 * part.grad)
                    part.grad = None
    else:
        optimizer = runtime.accelerator._optimizers[0]
        with runtime.micro_batch(model, last=True):
            runtime.backward(model, loss)
        runtime.update(model, optimizer, 0)
    return loss.detach()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_rank_generates_by_itself(world: Callable[..., World], strategy: str) -> None:
    results = world(strategy, rollouts).results(120)
    alone = policy()
    for index in range(2):
        alone.eval()
        expected = respond(alone, PROMPTS, SEEDS, SAMPLING, CPU).tokens.tolist()
        loss = float(learned(None, alone))
        for seen in results:
            assert seen["tokens"][index] == expected
            assert seen["losses"][index] == pytest.approx(loss, abs=1e-5)
            whole = sum(part.numel() for part in alone.policy.parameters())
            assert seen["whole"][index] == whole
            assert seen["held"][index] < 0.75 * whole, "shards again"
    assert results[0]["tokens"][0] != results[0]["tokens"][1], "the step changed the weights"


def in_step(runtime: Runtime) -> list[list[int]]:
    model = prepared(runtime)
    with runtime.generating(model, unwrap(model).policy) as together:
        assert together
        own = slice(0, 1) if runtime.rank else slice(1, 4)  # the ranks end at different steps
        return respond(model, PROMPTS[own], SEEDS[own], SAMPLING, runtime.device, together).tokens.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_where_the_copy_does_not_fit_ranks_generate_in_step(world: Callable[..., World], strategy: str) -> None:
    first, second = world(strategy, in_step, gathers=False).results(120)
    assert second + first == respond(policy(), PROMPTS, SEEDS, SAMPLING, CPU).tokens.tolist()


def failing(runtime: Runtime) -> None:
    model = prepared(runtime)
    with runtime.generating(model, unwrap(model).policy) as together:
        respond(model, PROMPTS, SEEDS, SAMPLING, runtime.device, together)
        if runtime.rank == 1:
            raise MemoryError("a rank has too little")
    runtime.barrier()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_that_fails_keeps_no_other_waiting(world: Callable[..., World], strategy: str) -> None:
    started = time.monotonic()
    errors = world(strategy, failing).errors(120)
    assert errors[1] == "MemoryError: a rank has too little"
    assert time.monotonic() - started < 60, "less than a collective's timeout"
