"""Classifiers under the strategies, for each problem, with weights and with rows that leave fillers: one trajectory and
one model. That each cell of the compatibility table trains is seen in test_compatibility."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli import largest_weight_difference, losses, metrics
from tests.forked_runs import SHARED, Leg, four_steps, live, train

pytestmark = pytest.mark.slow
LABELS: dict[str, Any] = {
    "single_label": lambda n: "abc"[n % 3],
    "multi_label": lambda n: ["a", "b", "c"][: n % 4],
    "regression": lambda n: n / 4,
}
WEIGHTS = {"single_label": [0.1, 0.3, 0.2], "multi_label": "balanced", "regression": None}


@dataclass(frozen=True)
class Trial:
    model: str
    problem: str
    strategy: str

    @property
    def name(self) -> str:
        return "-".join(vars(self).values())

    @property
    def alone(self) -> Trial:
        """The trial it must equal."""
        return Trial(self.model, self.problem, "single")


EQUAL = [
    *(Trial("bert", "single_label", strategy) for strategy in SHARED),
    *(Trial("llama", problem, strategy) for problem in ("multi_label", "regression") for strategy in ("ddp", "zero3")),
    Trial("llama", "multi_label", "fsdp2"),
    Trial("t5", "single_label", "fsdp2"),
]
TRIALS = list(dict.fromkeys([*(trial.alone for trial in EQUAL), *EQUAL]))


def config_of(trial: Trial) -> dict[str, Any]:
    processes = 1 if trial.strategy == "single" else 2
    rows = {"train": f"{trial.problem}.jsonl", "validation": f"held-{trial.problem}.jsonl"}
    return {
        "stage": "classify",
        "name": trial.name,
        "model": {"path": f"builtin:tiny-{trial.model}"},
        "data": {**rows, "text": "{text}", "label": "label", "max_length": 32},
        "classify": {"class_weights": WEIGHTS[trial.problem], "problem": trial.problem},
        "train": four_steps(processes),
        "parallel": {"strategy": trial.strategy, "num_processes": processes, "device": "cpu"},
    }


def write_rows(place: Path) -> None:
    """The 5 held-out rows leave a filler on two processes, and of batches of 3 one process a batch of them alone."""
    for problem, label in LABELS.items():
        for name, count in ((problem, 12), (f"held-{problem}", 5)):
            rows = [{"text": f"{name} {n} {'very ' * (n % 5)}", "label": label(n)} for n in range(count)]
            (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("classify")
    write_rows(place)
    return train({trial.name: config_of(trial) for trial in TRIALS}, place, timeout=600)


@pytest.mark.timeout(900)  # the first waits for all
@pytest.mark.parametrize("trial", EQUAL, ids=lambda trial: trial.name)
def test_one_trajectory(runs: dict[str, Path], trial: Trial) -> None:
    alone, shared = runs[trial.alone.name], runs[trial.name]
    assert losses(shared) == pytest.approx(losses(alone), abs=1e-5)
    assert largest_weight_difference(alone, shared) < 1e-5
    for one, other in zip(metrics(alone), metrics(shared), strict=True):
        for key in {"accuracy", "eval_loss", "eval_accuracy", "grad_norm"} & one.keys():
            assert other[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), key
    ends = [json.loads((run / "manifest.json").read_text())["metrics"] for run in (alone, shared)]
    for key in (key for key in ends[0] if key.startswith("eval_")):
        # a correlation divides by the spread of five predictions that are much alike, and so enlarges their rounding
        bound = 1e-3 if key in ("eval_pearson", "eval_spearman") else 1e-5
        assert ends[1][key] == pytest.approx(ends[0][key], abs=bound), key


@pytest.mark.timeout(600)
def test_killed_and_resumed_is_straight(tmp_path: Path) -> None:
    write_rows(tmp_path)
    lives: dict[str, list[Leg]] = {}
    for problem in ("single_label", "multi_label"):
        config = config_of(Trial("bert", problem, "ddp"))
        config["train"] = {**config["train"], "max_steps": 8, "save_steps": 2, "async_save": False}
        straight, killed = ({**config, "name": f"{problem}-{how}"} for how in ("straight", "killed"))
        lives |= {f"{problem}-straight": [Leg(straight)], f"{problem}-killed": [Leg(killed, kill_after=3), Leg(killed)]}
    went_on = live(lives, tmp_path)
    for problem in ("single_label", "multi_label"):
        straight, killed = (tmp_path / "runs" / f"{problem}-{how}" for how in ("straight", "killed"))
        assert went_on[f"{problem}-killed"][-1] > 1, "it went on from a checkpoint"
        assert losses(killed) == losses(straight)
        assert largest_weight_difference(killed, straight) == 0
