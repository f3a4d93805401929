"""What holds a model against forgetting, under every strategy: with the same rows, the same trajectory, penalty and
losses of old tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli import largest_weight_difference, losses, metrics
from tests.forked_runs import SHARED, Leg, four_steps, live, train

pytestmark = pytest.mark.slow
WEIGHTS = {"l2sp": 2.0, "ewc": 0.5, "kl": 1.0}
TERM = {"l2sp": "regularization/penalty", "ewc": "regularization/penalty", "kl": "regularization/kl"}
KEPT = {"eval/retain/capitals/loss", "eval/retain/capitals/perplexity", "eval/retain/numbers/loss", "eval_loss"}


@dataclass(frozen=True)
class Trial:
    kind: str
    strategy: str
    adapter: str = "full"
    model: str = "llama"
    accumulation: int = 1
    optimizer: str = "sgd"

    @property
    def name(self) -> str:
        return "-".join(map(str, vars(self).values()))

    @property
    def alone(self) -> Trial:
        """The trial it must equal."""
        return Trial(self.kind, "single", self.adapter, self.model, optimizer=self.optimizer)


EQUAL = [
    *(Trial("ewc", strategy) for strategy in SHARED),
    *(Trial("l2sp", strategy) for strategy in ("ddp", "zero3")),
    *(Trial("kl", strategy) for strategy in ("ddp", "zero2", "fsdp2")),
    *(Trial("ewc", strategy, "lora") for strategy in ("zero2", "zero3")),
    *(Trial("kl", strategy, "lora") for strategy in ("ddp", "fsdp2")),
    Trial("kl", "ddp", model="t5"),
    Trial("l2sp", "single", accumulation=2),
    Trial("ewc", "zero2", accumulation=2),
    Trial("kl", "fsdp2", accumulation=2),
    Trial("ewc", "zero2", optimizer="adamw"),
]
"""The last one's optimizer steps in main memory."""
TRIALS = list(dict.fromkeys([*(trial.alone for trial in EQUAL), *EQUAL]))


def config_of(trial: Trial) -> dict[str, Any]:
    processes = 1 if trial.strategy == "single" else 2
    train_section = four_steps(processes)
    train_section["per_device_train_batch_size"] //= trial.accumulation
    train_section["gradient_accumulation_steps"] = trial.accumulation
    offloads = trial.optimizer == "adamw" and processes > 1
    if trial.optimizer == "adamw":
        train_section |= {"optimizer": "adamw", "learning_rate": 1e-3}
    lora = {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"}
    return {
        "stage": "sft",
        "name": trial.name,
        "model": {"path": f"builtin:tiny-{trial.model}"},
        "data": {
            "train": "new.jsonl",
            "validation": "held.jsonl",
            "retain": [{"task": "capitals", "path": "capitals.jsonl"}, {"task": "numbers", "path": "numbers.jsonl"}],
            "regularization": None if trial.kind == "l2sp" else ["old.jsonl", {"path": "older.jsonl", "weight": 2}],
            "prompt": "Say {text}",
            "completion": "{answer}",
            "max_length": 32,
        },
        "regularization": {"type": trial.kind, "weight": WEIGHTS[trial.kind]},
        "adapter": lora if trial.adapter == "lora" else None,
        "train": train_section,
        "parallel": {
            "strategy": trial.strategy,
            "num_processes": processes,
            "device": "cpu",
            "offload_optimizer": offloads,
        },
    }


def write_rows(place: Path) -> None:
    """The odd numbers of old rows leave a filler on two processes, and of batches of 3 one process a batch of them."""
    for name, count in (("new", 12), ("held", 5), ("capitals", 5), ("numbers", 3), ("old", 4), ("older", 3)):
        rows = [{"text": f"{name} {n} {'very ' * (n % 4)}", "answer": f" {name[: n % 3 + 1]}"} for n in range(count)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("forgetting")
    write_rows(place)
    return train({trial.name: config_of(trial) for trial in TRIALS}, place, timeout=600)


@pytest.mark.timeout(900)  # the first waits for all
@pytest.mark.parametrize("trial", EQUAL, ids=lambda trial: trial.name)
def test_one_trajectory(runs: dict[str, Path], trial: Trial) -> None:
    alone, shared = runs[trial.alone.name], runs[trial.name]
    assert losses(shared) == pytest.approx(losses(alone), rel=2e-5)
    assert largest_weight_difference(alone, shared) < 1e-5
    term = TERM[trial.kind]
    assert max(line.get(term, 0.0) for line in metrics(alone)) > 1e-4
    for one, other in zip(metrics(alone), metrics(shared), strict=True):
        assert one["step"] == other["step"]
        for key in {term, *KEPT} & one.keys():
            assert other[key] == pytest.approx(one[key], rel=1e-3, abs=1e-6), key
    ends = [json.loads((run / "manifest.json").read_text())["metrics"] for run in (alone, shared)]
    for key in ("retain/capitals/loss_before", "retain/numbers/loss_after"):
        assert ends[1][key] == pytest.approx(ends[0][key], abs=1e-5), key


@pytest.mark.timeout(600)
def test_killed_and_resumed_is_straight(tmp_path: Path) -> None:
    """Under a strategy whose optimizer steps shards; and of ewc from there on under another one: what weights are drawn
    back to is where the run began, not where it went on."""
    write_rows(tmp_path)
    lives: dict[str, list[Leg]] = {}
    kinds = ("ewc", "kl")  # l2sp keeps what ewc keeps
    for kind in kinds:
        config = config_of(Trial(kind, "zero3"))
        config["train"] = {**config["train"], "max_steps": 8, "save_steps": 2, "async_save": False}
        straight, killed, moved = ({**config, "name": f"{kind}-{how}"} for how in ("straight", "killed", "moved"))
        lives |= {f"{kind}-straight": [Leg(straight)], f"{kind}-killed": [Leg(killed, kill_after=3), Leg(killed)]}
        if kind == "ewc":
            elsewhere = {**moved, "parallel": {**moved["parallel"], "strategy": "fsdp2"}}
            lives["ewc-moved"] = [Leg(moved, kill_after=3), Leg(elsewhere)]
    went_on = live(lives, tmp_path, timeout=500)
    assert all(went_on[name][-1] > 1 for name in lives if "straight" not in name), "they went on from checkpoints"
    runs = {name: tmp_path / "runs" / name for name in lives}
    for kind in kinds:
        assert losses(runs[f"{kind}-killed"]) == losses(runs[f"{kind}-straight"])
        assert largest_weight_difference(runs[f"{kind}-killed"], runs[f"{kind}-straight"]) == 0
    assert largest_weight_difference(runs["ewc-moved"], runs["ewc-straight"]) < 1e-5
