"""Many checks in one launch: `accelerate launch --config_file RUN/launch/policy.yaml cases.py RUN OUT`.

Each rank writes what it saw to OUT/rank<N>.json; test_runtime.py judges it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaleup.artifacts.checkpoints import whole_checkpoints
from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.train_state import TrainState
from scaleup.config.schema import GenerationConfig, OptimizationConfig
from scaleup.data.collate import causal_collator
from scaleup.data.loader import eval_batches
from scaleup.data.tokenization import Tokens
from scaleup.distributed.runtime import Runtime
from scaleup.distributed.signals import StopFlag
from scaleup.errors import ScaleupError
from scaleup.models.decode import Decoder
from scaleup.models.generation import Generator
from scaleup.models.gumbel import GumbelMax
from scaleup.models.load import load_model, load_tokenizer
from scaleup.plan.types import Plan
from scaleup.train.checkpoint import Checkpointer
from scaleup.train.losses import token_loss_sum
from scaleup.train.step import train_step

run, out = RunFolder(Path(sys.argv[1])), Path(sys.argv[2])
plan = Plan.read(run.plan_file)
stop = StopFlag().install()
runtime = Runtime.start(plan.group("policy"), timeout_seconds=60, run_folder=run.path, stop=stop)
tokenizer = load_tokenizer(run.config.model, plan.model.location)
model = load_model(run.config.model, plan.model)
CASES: list[Callable[[], Any]] = []
prepared: list[Any] = []
"""Model and optimizer, once a case has prepared them."""


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    CASES.append(function)
    return function


def row(length: int) -> Tokens:
    ids = np.arange(3, 3 + length, dtype=np.int32)
    return Tokens(ids, ids)


def error_of(action: Callable[[], object]) -> str | None:
    try:
        action()
    except ScaleupError as error:
        return str(error)
    return None


@case
def place() -> list[int]:
    return [runtime.rank, runtime.world]


@case
def sums() -> list[float]:
    """Float32 would lose the 1."""
    return runtime.sum(runtime.rank + 1, 2**30 + runtime.rank, 0.1)


@case
def anys() -> list[bool]:
    return [runtime.any(runtime.rank == 1), runtime.any(runtime.rank == 0), runtime.any(True), runtime.any(False)]


@case
def evaluation_rows() -> dict[str, list[list[int]]]:
    """Rows are known by their length; a filler has one token. 13 rows in batches of 4: the last share is uneven."""
    seen = {}
    for count in (13, 8, 1):
        batches = list(eval_batches([row(2 + i) for i in range(count)], causal_collator(0), 4, runtime.rank, 2))
        seen[str(count)] = [batch.inputs["attention_mask"].sum(dim=1).tolist() for batch in batches]
    return seen


@case
def answers() -> dict[str, Any]:
    """Against one prompt at a time on this rank alone. 5 prompts over 2 ranks; 1, where one rank has none. Two answers
    a prompt, each drawn with a seed of its own."""
    texts = ["a", "bcdefgh", "cde", "the fourth", "e"]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    settings = GenerationConfig(max_new_tokens=5)

    def together(chosen: list[list[int]]) -> list[str]:
        return Generator(runtime, model, tokenizer, settings, 2, run.path / ".parts").answers(chosen, "answers")

    def by_hand(prompt: list[int], **how: Any) -> str:
        output = model.generate(torch.tensor([prompt]), max_new_tokens=5, pad_token_id=0, **how)
        return str(tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True))

    drawing = GenerationConfig(max_new_tokens=5, temperature=1.0, top_k=40, seed=3, num_return_sequences=2)
    drawn = Generator(runtime, model, tokenizer, drawing, 4, run.path / ".parts").sequences(prompts, "answers")
    drawn_alone = []
    for number, prompt in enumerate(prompts):
        draws = [Decoder(GumbelMax.seeded([(3, number, draw)], runtime.device)) for draw in range(2)]
        how = {"do_sample": True, "temperature": 1.0, "top_k": 40}
        drawn_alone.append([by_hand(prompt, custom_generate=draw, **how) for draw in draws])
    alone = [by_hand(prompt, do_sample=False) for prompt in prompts]
    found = {"alone": alone, "five": together(prompts), "one": together(prompts[:1])}
    return {**found, "drawn": drawn, "drawn alone": drawn_alone}


@case
def unplanned_engine() -> list[str | None]:
    """A plan that expects something else than what Accelerate does."""
    group = plan.group("policy")
    other = Runtime(runtime.accelerator, group.model_copy(update={"engine": "none"}), runtime.progress, stop)
    refusal = error_of(lambda: other.prepare(torch.nn.Linear(2, 2)))
    planned = error_of(lambda: runtime.prepare(torch.nn.Linear(2, 2)))
    runtime.accelerator.free_memory()
    return [refusal, planned]


@case
def unplanned_world() -> list[str | None]:
    """Runtime.start against plans that differ in one thing."""
    group = plan.group("policy")
    changes = [{"num_processes": 3}, {"distributed_type": "MULTI_GPU"}, {"backend": "nccl"}]
    return [
        error_of(lambda change=change: Runtime.start(group.model_copy(update=change), 60, run.path))
        for change in changes
    ]


@case
def one_signal_stops_all() -> list[int]:
    """Rank 1 gets SIGTERM in its third step; each rank stops where the step says so."""
    wrapped, optimizer = runtime.prepare(model, torch.optim.SGD(model.parameters(), lr=0.0))
    prepared.extend((wrapped, optimizer))
    steps = 0
    while steps < 10:
        if runtime.rank == 1 and steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        batch = causal_collator(0)([row(4 + runtime.rank)])
        steps += 1
        if train_step(runtime, wrapped, optimizer, [batch], token_loss_sum, 1.0).stop_requested:
            break
    return [steps, int(stop.requested)]


@case
def one_full_disk_stops_all() -> dict[str, Any]:
    """Saving fails on one rank only, in each of the things it does."""
    schedule = torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]), 1.0)
    checkpointer = Checkpointer(runtime, run, *prepared, schedule, OptimizationConfig(save_total_limit=2))
    checkpointer.save(TrainState(step=1))
    errors = []
    for step, rank, kind in ((2, 1, OSError), (3, 0, RuntimeError)):
        normal = Checkpointer._write

        def full(self: Checkpointer, aside: Path, state: TrainState, kind: type[Exception] = kind) -> None:
            normal(self, aside, state)  # noqa: B023
            raise kind("No space left on device")

        if runtime.rank == rank:
            Checkpointer._write = full  # type: ignore[method-assign]
        errors.append(error_of(lambda step=step: checkpointer.save(TrainState(step=step))))
        Checkpointer._write = normal  # type: ignore[method-assign]
    runtime.barrier()
    left = sorted(folder.name for folder in run.checkpoints.iterdir())
    whole = [checkpoint.step for checkpoint in whole_checkpoints(run.checkpoints)]
    runtime.barrier()
    checkpointer.save(TrainState(step=4))
    checkpointer.wait()
    runtime.barrier()
    after = [checkpoint.step for checkpoint in whole_checkpoints(run.checkpoints)]
    return {"errors": errors, "left": left, "whole": whole, "after": after}


results = {function.__name__: function() for function in CASES}
(out / f"rank{runtime.rank}.json").write_text(json.dumps(results), encoding="utf-8")
runtime.accelerator.end_training()
