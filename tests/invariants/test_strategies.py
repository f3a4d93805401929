"""Every strategy is the same training: what DDP computes, ZeRO and FSDP2 compute too, in any split of the global batch.

SGD without momentum in float32, for the reasons of test_one_trajectory; AdamW where a killed run has to find its
optimizer's state again. Each run is started once and compared by several tests."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from scaleup.artifacts.checkpoints import whole_checkpoints
from tests.cli import (
    Result,
    alive,
    differing,
    folder_of,
    interrupt,
    largest_loss_difference,
    largest_weight_difference,
    losses,
    metrics,
    reached,
    run,
    worker_ids,
)
from tests.forked_runs import Leg, live, train

TOLERANCE = 1e-5
"""Over 12 steps, in nats a token and in a weight's own unit: float32 sums in another order differ by about 1e-6."""

BF16_TOLERANCE = 2**-8
"""Relative, on the loss, to DDP in float32: one unit in bfloat16's last place (seen: 6e-4, also under ZeRO, whose
working weights are rounded to it). A run that never left float32 is noticed too: it differs by less than TOLERANCE."""

Runs = Mapping[str, Path]

BASE: dict[str, Any] = {
    "stage": "sft",
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "completion": "{completion}", "max_length": 128},
    "train": {
        "max_steps": 12,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optimizer": "sgd",
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": 4,
    },
    "parallel": {"num_processes": 2},
}
ONE = {"parallel.num_processes": 1, "train.per_device_train_batch_size": 8}
ACCUMULATED = {"train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 2}
CHECKPOINTED = {"gradient_checkpointing": True, **ACCUMULATED}
UNCLIPPED = {"train.max_grad_norm": 0, **ACCUMULATED}
UNCLIPPED_CHECKPOINTED = {"gradient_checkpointing": True, "train.max_grad_norm": 0}
BF16 = {"mixed_precision": "bf16", "gradient_checkpointing": True}
SHARDED = ("fsdp2", "zero1", "zero2", "zero3")


def under(strategy: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"parallel.strategy": strategy, **(changes or {})}


CELLS: dict[str, dict[str, dict[str, Any]]] = {
    "tiny-llama": {
        "fsdp2": under("fsdp2"),
        "zero1": under("zero1"),
        "zero2": under("zero2"),
        "zero2-one-process": under("zero2", ONE),
        "zero3": under("zero3"),
        "zero3-offloaded": under("zero3", {"parallel.offload_parameters": True}),
        **{f"{strategy}-checkpointed": under(strategy, CHECKPOINTED) for strategy in SHARDED},
    },
    "tiny-t5": {
        **{strategy: under(strategy, UNCLIPPED) for strategy in SHARDED},
        **{f"{strategy}-checkpointed": under(strategy, UNCLIPPED_CHECKPOINTED) for strategy in SHARDED},
    },
}
DDP = {"tiny-llama": {}, "tiny-t5": UNCLIPPED}
HALF = {strategy: under(strategy, BF16) for strategy in SHARDED}
COMPARED = [
    pytest.param(model, name, marks=pytest.mark.slow if model == "tiny-t5" else pytest.mark.covers("ddp", name))
    for model, cells in CELLS.items()
    for name in cells
]

NUM_STEPS = 21
SAVE_STEPS = 3
LONG: dict[str, Any] = {
    "train.max_steps": NUM_STEPS,
    "train.save_steps": SAVE_STEPS,
    "train.learning_rate": 1e-3,
    "train.lr_scheduler_type": "cosine",
    "train.optimizer": "adamw",
    "train.weight_decay": 0.01,
}
COMMANDED = ("fsdp2", "zero3")
"""Started by the command line, where they are killed and resumed; the others by forking alone."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows of 3 to 80 characters, whose completions are a quarter to three quarters of them."""
    folder = tmp_path_factory.mktemp("strategies")
    chance = random.Random(0)
    rows = []
    for _ in range(40):
        length = chance.randint(3, 80)
        cut = max(1, round(length * chance.uniform(0.25, 0.75)))
        text = "".join(chance.choices("abcdefghi", k=length))
        rows.append({"prompt": text[:-cut], "completion": text[-cut:]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def config_of(model: str, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    return differing(BASE | {"name": f"{model}-{name}", "model": {"path": f"builtin:{model}"}}, changes)


def runs_of(model: str, place: Path, cells: Mapping[str, Mapping[str, Any]]) -> Runs:
    return train({name: config_of(model, name, changes) for name, changes in cells.items()}, place)


@pytest.fixture(scope="module")
def llama(place: Path) -> Runs:
    return runs_of("tiny-llama", place, {"ddp": DDP["tiny-llama"], **CELLS["tiny-llama"]})


@pytest.fixture(scope="module")
def t5(place: Path) -> Runs:
    return runs_of("tiny-t5", place, {"ddp": DDP["tiny-t5"], **CELLS["tiny-t5"]})


@pytest.fixture(scope="module")
def halves(place: Path) -> Runs:
    return runs_of("tiny-llama", place, {f"{name}-bf16": changes for name, changes in HALF.items()})


@pytest.fixture
def runs(request: pytest.FixtureRequest, model: str) -> Runs:
    return request.getfixturevalue({"tiny-llama": "llama", "tiny-t5": "t5"}[model])


def weight_names(folder: Path) -> list[str]:
    with safe_open(folder / "model" / "model.safetensors", "np") as file:
        return sorted(file.keys())


@pytest.mark.parametrize(("model", "name"), COMPARED)
def test_every_strategy_is_the_trajectory_of_ddp(runs: Runs, model: str, name: str) -> None:
    ddp, other = runs["ddp"], runs[name]
    assert list(losses(ddp)) == list(range(1, 13))
    assert losses(ddp)[12] < losses(ddp)[1] - 0.5, "a model that never learns would prove nothing"
    loss, weight = largest_loss_difference(ddp, other), largest_weight_difference(ddp, other)
    print(f"{model} {name}: largest difference of a loss {loss:.1e}, of a weight {weight:.1e}")
    assert loss <= TOLERANCE
    assert weight <= TOLERANCE
    norms = [[line["grad_norm"] for line in metrics(folder)] for folder in (ddp, other)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    tokens = [[line["num_tokens"] for line in metrics(folder)] for folder in (ddp, other)]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(("model", "name"), COMPARED)
def test_its_model_is_an_ordinary_one(runs: Runs, model: str, name: str) -> None:
    ddp, other = runs["ddp"], runs[name]
    names = weight_names(other)
    assert names == weight_names(ddp)
    shared = [weight for weight in names if "shared" in weight or "embed_tokens" in weight]
    assert len(shared) == 1, "an embedding that several modules share is written once"
    kind = {"tiny-llama": AutoModelForCausalLM, "tiny-t5": AutoModelForSeq2SeqLM}[model]
    _, found = kind.from_pretrained(other / "model", output_loading_info=True)
    assert {what: list(which) for what, which in found.items() if which} == {}


def test_the_clipping_matters(llama: Runs) -> None:
    """Otherwise a strategy that does not clip would pass."""
    assert max(line["grad_norm"] for line in metrics(llama["ddp"])) > 1.1


@pytest.mark.slow
@pytest.mark.parametrize("strategy", HALF)
def test_bf16_follows_float32(halves: Runs, llama: Runs, strategy: str) -> None:
    half, full = losses(halves[f"{strategy}-bf16"]), losses(llama["ddp"])
    relative = max(abs(half[step] - full[step]) / full[step] for step in full)
    print(f"{strategy} bf16: largest relative difference of a loss {relative:.1e}")
    assert TOLERANCE < relative <= BF16_TOLERANCE
    assert half[12] < half[1] - 0.5


def kill_and_resume(strategy: str, place: Path) -> tuple[Path, Result, list[int]]:
    """A run of which a worker is killed, which is then resumed. Its folder, its first end, and what was whole then."""
    config = config_of("tiny-llama", f"{strategy}-killed", under(strategy, LONG))
    folder = folder_of(config, place)
    chance = random.Random(strategy)

    def kill_a_worker(process: subprocess.Popen[str], folder: Path) -> None:
        os.kill(chance.choice(worker_ids(folder, "1")), signal.SIGKILL)

    result = interrupt(config, cwd=place, when=reached(chance.randint(7, 12)), do=kill_a_worker)
    assert alive(worker_ids(folder)) == []
    whole = [checkpoint.step for checkpoint in whole_checkpoints(folder / "checkpoints")]
    run(config, "--resume", cwd=place)
    return folder, result, whole


@pytest.fixture(scope="module")
def straights(place: Path) -> Runs:
    return runs_of("tiny-llama", place, {f"{name}-straight": under(name, LONG) for name in SHARDED})


@pytest.fixture(scope="module")
def lives(pool: ThreadPoolExecutor, place: Path) -> dict[str, Future[tuple[Path, Result, list[int]]]]:
    return {name: pool.submit(kill_and_resume, name, place) for name in COMMANDED}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", COMMANDED)
def test_a_killed_run_ends_like_one_that_was_not(
    straights: Runs, lives: dict[str, Future[tuple[Path, Result, list[int]]]], strategy: str
) -> None:
    """Bit by bit; so the command line gives the same as the ranks that are forked in all other tests."""
    straight = straights[f"{strategy}-straight"]
    folder, killed, whole = lives[strategy].result()
    assert killed.code == 1, killed.stderr
    assert whole and whole[-1] % SAVE_STEPS == 0
    assert f"the newest checkpoint is step {whole[-1]}; continue with --resume" in killed.stderr
    assert_same_end(straight, folder)


@pytest.fixture(scope="module")
def killed(place: Path) -> Runs:
    """As `lives`, with all ranks killed at once."""
    names = [name for name in SHARDED if name not in COMMANDED]
    configs = {name: config_of("tiny-llama", f"{name}-killed", under(name, LONG)) for name in names}
    live({name: [Leg(config, kill_after=8), Leg(config)] for name, config in configs.items()}, place)
    return {name: folder_of(config, place) for name, config in configs.items()}


@pytest.mark.covers("resume")
@pytest.mark.parametrize("strategy", [name for name in SHARDED if name not in COMMANDED])
def test_killed_ranks_end_like_ones_that_were_not(straights: Runs, killed: Runs, strategy: str) -> None:
    assert_same_end(straights[f"{strategy}-straight"], killed[strategy])


def assert_same_end(straight: Path, folder: Path) -> None:
    loss, weight = largest_loss_difference(straight, folder), largest_weight_difference(straight, folder)
    print(f"{folder.name}: largest difference of a loss {loss:.1e}, of a weight {weight:.1e}")
    assert len(list((folder / "attempts").iterdir())) == 2
    assert list(losses(folder)) == list(range(1, NUM_STEPS + 1))
    assert (loss, weight) == (0, 0)
    assert [line["num_tokens"] for line in metrics(folder)] == [line["num_tokens"] for line in metrics(straight)]
