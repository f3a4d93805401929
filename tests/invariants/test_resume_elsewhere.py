"""A run that is killed again and again, and goes on each time on other processes or under another strategy, is the run
that nobody touched: weights, moments and the optimizer's count of steps all come over.

Each journey is one run folder; every leg ends with SIGKILL at a random step but the last. Each straight run is one
process under no strategy at all."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scaleup.distributed.deepspeed_ops import ops_folder
from tests.cli import differing, folder_of, largest_weight_difference, losses, metrics
from tests.forked_runs import Leg, live

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5
"""In nats a token and in a weight's own unit, as in test_strategies."""
SAVE_STEPS = 2
LEG = 5
"""Steps a leg takes at least; the last one takes more."""

BASE: dict[str, Any] = {
    "stage": "sft",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "completion": "{completion}", "max_length": 128},
    "train": {
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "global_batch_size": 8,
        "save_steps": SAVE_STEPS,
    },
}
T5 = {"model.path": "builtin:tiny-t5"}
SGD = {"train.optimizer": "sgd", "train.learning_rate": 0.1, "train.momentum": 0.5}
FIRST_IS_BEST = {
    "data.validation_fraction": 0.125,
    "train.eval_steps": 2,
    "train.early_stopping_threshold": 100.0,
    "train.load_best_model_at_end": True,
}
"""So that the weights at the end are those of a checkpoint that the first leg wrote."""
BF16 = {"mixed_precision": "bf16"}
LORA = {
    "adapter": {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
    "train.learning_rate": 5e-3,
}
SELECTIVE = {"adapter": {"type": "selective", "parameters": ["*layers.1.*", "*norm*"]}}
SUB_GROUP = 10_000
"""Counts elements: of tiny-llama, two ranks then have six flat tensors each for two parameter groups."""
CAN_OFFLOAD = (ops_folder() / "cpu_adam" / "built").exists()
"""Otherwise DeepSpeed would compile its CPU Adam now; `make setup` does."""


@dataclass(frozen=True)
class Journey:
    legs: list[str]
    """`strategy@processes`, or with `+offload`; or zero3 with `+groups`, as of a model of which a rank has more than
    a billion elements."""
    changes: dict[str, Any]
    straight: str = "single@1"
    tolerance: float = TOLERANCE

    @property
    def num_steps(self) -> int:
        return (LEG + SAVE_STEPS) * len(self.legs)


def route(text: str) -> list[str]:
    return [leg for leg in text.split() if CAN_OFFLOAD or not leg.endswith("+offload")]


JOURNEYS = {
    "adamw": Journey(route("ddp@1 ddp@2 ddp@1 zero3@2 zero3@1 zero3@2 zero2@2+offload fsdp2@2 fsdp2@1 fsdp2@2"), {}),
    "t5": Journey(route("fsdp2@2 zero1@1 zero1@2 zero1@1 zero2@2 zero2@1 zero2@2 ddp@2"), T5),
    "sub-groups": Journey(route("zero3@2+groups zero3@1+groups zero3@1+groups ddp@1"), {}),
    "sgd": Journey(route("zero2@1 zero3@2 fsdp2@1 single@1"), SGD | FIRST_IS_BEST),
    "lora": Journey(route("ddp@2 zero3@2 fsdp2@2 zero2@1"), LORA),
    "8bit": Journey(route("zero1@2 ddp@2 zero2@1"), LORA | {"quantization": "8bit"}),
    "4bit": Journey(route("zero3@2 zero3@1"), LORA | {"quantization": "4bit"}),
    "selective": Journey(route("zero3@2 fsdp2@1 zero1@2"), SELECTIVE),
    # ZeRO-1 and 2 round alike: float32 master weights that came over as bfloat16 would show
    "bf16": Journey(route("zero1@2 zero2@2 zero1@2"), BF16, straight="zero2@2", tolerance=0.0),
}
MOVES = [(name, number) for name, journey in JOURNEYS.items() for number in range(1, len(journey.legs))]


def leg_config(leg: str) -> dict[str, Any]:
    place, _, more = leg.partition("+")
    strategy, _, processes = place.partition("@")
    return {
        "parallel.strategy": strategy,
        "parallel.num_processes": int(processes),
        "train.per_device_train_batch_size": 8 // int(processes),
        "parallel.offload_optimizer": more == "offload",
    }


def leg_zero(leg: str) -> dict[str, Any]:
    """DeepSpeed then lays a parameter group of its optimizer out as several flat tensors."""
    return {"sub_group_size": SUB_GROUP} if leg.endswith("+groups") else {}


@dataclass(frozen=True)
class Travelled:
    folder: Path
    straight: Path
    first_steps: list[int]
    """The step that each leg went on with."""


def legs_of(name: str, seed: int) -> list[Leg]:
    chance, journey = random.Random(f"{seed} {name}"), JOURNEYS[name]
    config = differing(BASE | {"name": name}, journey.changes | {"train.max_steps": journey.num_steps})
    *before, last = [(differing(config, leg_config(leg)), leg_zero(leg)) for leg in journey.legs]
    legs = [Leg(there, chance.randint(LEG - 2, LEG), zero) for there, zero in before]
    return [*legs, Leg(last[0], zero=last[1])]


def straight_config(name: str) -> dict[str, Any]:
    journey = JOURNEYS[name]
    changes = journey.changes | {"train.max_steps": journey.num_steps, **leg_config(journey.straight)}
    return differing(BASE | {"name": f"{name}-straight"}, changes)


@pytest.fixture(scope="module")
def travelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Travelled]:
    place = tmp_path_factory.mktemp("elsewhere")
    rows = [{"prompt": "x" * (3 + 11 * i % 60), "completion": f" {i} is what follows"[: 4 + i % 15]} for i in range(64)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    seed = int(os.environ.get("SCALEUP_TEST_SEED", "0"))
    print(f"the kills of test_resume_elsewhere are drawn with SCALEUP_TEST_SEED={seed}")
    journeys = {name: legs_of(name, seed) for name in JOURNEYS}
    straights = {name: straight_config(name) for name in JOURNEYS}
    first_steps = live(journeys | {f"{name}-straight": [Leg(config)] for name, config in straights.items()}, place)
    return {
        name: Travelled(folder_of({"name": name}, place), folder_of(straights[name], place), first_steps[name])
        for name in JOURNEYS
    }


def move_name(name: str, number: int) -> str:
    before, after = JOURNEYS[name].legs[number - 1 : number + 1]
    return f"{name}: {before} -> {after}"


@pytest.mark.parametrize(("name", "number"), MOVES, ids=[move_name(*move) for move in MOVES])
def test_a_move_keeps_the_trajectory(travelled: dict[str, Travelled], name: str, number: int) -> None:
    """Of the losses from this move to the next."""
    found = travelled[name]
    there, straight = losses(found.folder), losses(found.straight)
    first_steps = [*found.first_steps, max(straight) + 1]
    steps = range(first_steps[number], first_steps[number + 1])
    difference = max(abs(there[step] - straight[step]) for step in steps)
    print(f"{move_name(name, number)}: {steps}: a loss differs by {difference:.1e}")
    assert len(steps) >= 2
    assert difference <= JOURNEYS[name].tolerance


@pytest.mark.parametrize("name", JOURNEYS)
def test_the_end_of_a_journey(travelled: dict[str, Travelled], name: str) -> None:
    found, journey = travelled[name], JOURNEYS[name]
    steps = [[line for line in metrics(folder) if "loss" in line] for folder in (found.folder, found.straight)]
    assert [line["step"] for line in steps[0]] == list(range(1, journey.num_steps + 1))
    for key in ("learning_rate", "num_tokens"):
        there, straight = ([line[key] for line in lines] for lines in steps)
        assert there == pytest.approx(straight, rel=1e-9)
    weight = largest_weight_difference(found.straight, found.folder)
    print(f"{name}: largest difference of a weight {weight:.1e}; legs began with steps {found.first_steps}")
    assert weight <= journey.tolerance
    assert losses(found.straight)[journey.num_steps] < losses(found.straight)[1] - 0.3, "a model that never learns"
