"""One global batch, split in any way over processes, accumulation and micro-batches, is one trajectory.

SGD without momentum in float32: Adam would hide a wrong scale of the gradient. Rows differ a lot in length, so that a
mean of means (over micro-batches or ranks) would show at once. Each run is started once and compared by several
tests."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli import differing, largest_loss_difference, largest_weight_difference, losses, metrics
from tests.forked_runs import train

pytestmark = pytest.mark.covers("single", "one trajectory")
TOLERANCE = 1e-5
"""Over 12 steps, in nats a token and in a weight's own unit: float32 sums in another order differ by about 1e-6."""

BF16_TOLERANCE = 2**-8
"""Relative, on the loss: one unit in bfloat16's last place. A single product is off by up to half of that; the loss
averages hundreds of them, which mostly cancel (seen: 3e-4). Float32 noise is below 1e-6, so that a run which never left
float32 is noticed too."""

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
        "per_device_train_batch_size": 8,
    },
    "parallel": {"num_processes": 1},
}


def split(processes: int, micro_batch: int, accumulation: int) -> dict[str, int]:
    return {
        "parallel.num_processes": processes,
        "train.per_device_train_batch_size": micro_batch,
        "train.gradient_accumulation_steps": accumulation,
    }


SPLITS = {
    "two-processes": split(2, 4, 1),
    "accumulation": split(1, 4, 2),
    "micro-batch-1": split(2, 1, 4),
    "checkpointing": {"gradient_checkpointing": True, **split(2, 2, 2)},
}
OTHERS = {
    "global-batch-size": {"train.global_batch_size": 8, "train.per_device_train_batch_size": 2},
    "other-seed": {"train.seed": 1},
    "unclipped": {"train.max_grad_norm": 0},
    "unclipped-two-processes": {"train.max_grad_norm": 0, **split(2, 2, 2)},
}
MODELS = {
    "tiny-llama": {"one-process": {}, **SPLITS, "bf16": {"mixed_precision": "bf16"}, **OTHERS},
    "tiny-t5": {"one-process": {}, **SPLITS, "bf16": {"mixed_precision": "bf16"}},
}

KINDS = ["tiny-llama", pytest.param("tiny-t5", marks=pytest.mark.slow)]

MIXTURE = {
    "data.train": [{"path": "rows.jsonl", "weight": 3.0}, {"path": "few.jsonl", "weight": 1.0}],
    "data.completion": "{source}{completion}",
}
DATA = {
    "mixture-in-epochs": {**MIXTURE, "train.max_steps": None, "train.num_train_epochs": 2},
    "streamed-mixture": {**MIXTURE, "data.streaming": True, "data.shuffle_buffer": 16},
}


def write_rows(file: Path, count: int, source: str) -> None:
    """Rows of 3 to 80 characters, whose completions are a quarter to three quarters of them."""
    chance = random.Random(file.name)
    rows = []
    for _ in range(count):
        length = chance.randint(3, 80)
        cut = max(1, round(length * chance.uniform(0.25, 0.75)))
        text = "".join(chance.choices("abcdefghi", k=length))
        rows.append({"source": source, "prompt": text[:-cut], "completion": text[-cut:]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_trajectory")
    write_rows(folder / "rows.jsonl", 40, "m")
    write_rows(folder / "few.jsonl", 21, "f")
    return folder


def config_of(model: str, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    return differing(BASE | {"name": f"{model}-{name}", "model": {"path": f"builtin:{model}"}}, changes)


def runs_of(model: str, place: Path) -> Runs:
    return train({name: config_of(model, name, changes) for name, changes in MODELS[model].items()}, place)


@pytest.fixture(scope="module")
def llama(place: Path) -> Runs:
    return runs_of("tiny-llama", place)


@pytest.fixture(scope="module")
def t5(place: Path) -> Runs:
    return runs_of("tiny-t5", place)


@pytest.fixture
def runs(request: pytest.FixtureRequest, model: str) -> Runs:
    return request.getfixturevalue({"tiny-llama": "llama", "tiny-t5": "t5"}[model])


def assert_same(one: Path, other: Path, what: str) -> None:
    loss, weight = largest_loss_difference(one, other), largest_weight_difference(one, other)
    print(f"{what}: largest difference of a loss {loss:.1e}, of a weight {weight:.1e}")
    assert loss <= TOLERANCE
    assert weight <= TOLERANCE
    tokens = [[line["num_tokens"] for line in metrics(folder)] for folder in (one, other)]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("model", KINDS)
def test_every_split_of_the_global_batch_is_one_trajectory(runs: Runs, model: str, name: str) -> None:
    straight = runs["one-process"]
    assert list(losses(straight)) == list(range(1, 13))
    assert_same(straight, runs[name], f"{model} {name}")


def test_a_global_batch_size_means_the_accumulation_it_takes(llama: Runs) -> None:
    folder = llama["global-batch-size"]
    assert json.loads((folder / "plan.json").read_text())["batch"]["accumulation"] == 4
    assert_same(llama["one-process"], folder, "global-batch-size")


@pytest.mark.parametrize("model", KINDS)
def test_bf16_differs_by_its_rounding_only(runs: Runs, model: str) -> None:
    full, half = losses(runs["one-process"]), losses(runs["bf16"])
    relative = max(abs(half[step] - full[step]) / full[step] for step in full)
    print(f"{model} bf16: largest relative difference of a loss {relative:.1e}")
    assert TOLERANCE < relative <= BF16_TOLERANCE


@pytest.mark.parametrize("model", KINDS)
def test_the_model_learns(runs: Runs, model: str) -> None:
    """Otherwise everything above would hold for weights that never move."""
    trajectory = losses(runs["one-process"])
    assert trajectory[12] < trajectory[1] - 1


def test_another_seed_is_another_trajectory(llama: Runs) -> None:
    """Only the order of the rows differs, and the comparison sees it."""
    straight, other = llama["one-process"], llama["other-seed"]
    assert largest_loss_difference(straight, other) > 100 * TOLERANCE
    assert largest_weight_difference(straight, other) > 100 * TOLERANCE


def test_without_clipping_every_split_is_one_trajectory(llama: Runs) -> None:
    straight = llama["unclipped"]
    assert_same(straight, llama["unclipped-two-processes"], "unclipped")
    assert largest_loss_difference(straight, llama["one-process"]) > 100 * TOLERANCE


@pytest.fixture(scope="module")
def data_runs(place: Path) -> Runs:
    splits = {processes: split(processes, 8 // processes, 1) for processes in (1, 2)}
    changes = {f"{name}-{n}": more | splits[n] for name, more in DATA.items() for n in splits}
    return train({name: config_of("tiny-llama", name, more) for name, more in changes.items()}, place)


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_every_way_to_draw_rows_is_one_trajectory(data_runs: Runs, name: str) -> None:
    """Two epochs end within a step (122 rows are 15 steps of 8 and one of 2, of which the second process has none)."""
    one, two = (data_runs[f"{name}-{processes}"] for processes in (1, 2))
    assert len(losses(one)) == {"mixture-in-epochs": 16, "streamed-mixture": 12}[name]
    assert_same(one, two, name)
