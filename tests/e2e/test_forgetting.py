"""A model that has learned one task learns another: how much of the first is lost is measured, and each way to hold it
loses less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli import metrics, run
from tests.forked_runs import train

REPOSITORY = Path(__file__).parent.parent.parent
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo", "Peru": "Lima", "Cuba": "Havana"}
OLD = [{"ask": country, "answer": f" {city}"} for country, city in CAPITALS.items()]
SOUNDS = {"dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "sheep": "baa", "pig": "oink"}
NEW = [{"ask": animal, "answer": f" {sound}"} for animal, sound in SOUNDS.items()]
WAYS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "l2sp": {"regularization": {"type": "l2sp", "weight": 0.03}},
    "ewc": {"regularization": {"type": "ewc", "weight": 100.0}, "old": True},
    "kl": {"regularization": {"type": "kl", "weight": 1.0}, "old": True},
}


def config_of(name: str, model: str, rows: str, old: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "stage": "sft",
        "name": name,
        "model": {"path": model},
        "data": {
            "train": rows,
            "retain": [{"task": "capitals", "path": "measured.jsonl"}],
            "regularization": "old.jsonl" if old else None,
            "prompt": "{ask}:",
            "completion": "{answer}",
            "max_length": 32,
        },
        "train": {"max_steps": 60, "learning_rate": 3e-3, "per_device_train_batch_size": 6, "logging_steps": 60},
        **more,
    }


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_each_way_loses_less_than_nothing_done(tmp_path: Path) -> None:
    for name, rows in (("old", OLD), ("measured", OLD), ("new", NEW)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first = config_of("first", "builtin:tiny-llama", "old.jsonl")
    base = train({"first": first}, tmp_path)["first"]
    runs = train({way: config_of(way, str(base), "new.jsonl", **more) for way, more in WAYS.items()}, tmp_path)
    ends = {way: json.loads((folder / "manifest.json").read_text())["metrics"] for way, folder in runs.items()}
    print({way: (end["train_loss"], end["retain/capitals/loss_after"]) for way, end in ends.items()})
    learned = json.loads((base / "manifest.json").read_text())["metrics"]["retain/capitals/loss_after"]
    lost = {way: end["retain/capitals/loss_after"] for way, end in ends.items()}
    assert learned < 0.5 and lost["nothing"] > learned + 1
    for way, end in ends.items():
        assert end["retain/capitals/loss_before"] == pytest.approx(learned, rel=1e-4)
        if way != "nothing":
            assert lost[way] < lost["nothing"] - 0.5, way


@pytest.mark.covers("sft")
@pytest.mark.timeout(400)
def test_the_offered_config_measures_an_old_task(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"film {number}", "label": "good"}) + "\n" for number in range(60)]
    (tmp_path / "data/reviews").mkdir(parents=True)
    for name, part in (("train", rows[:40]), ("validation", rows[40:50]), ("test", rows[50:])):
        (tmp_path / f"data/reviews/{name}.jsonl").write_text("".join(part), encoding="utf-8")
    config = yaml.safe_load((REPOSITORY / "configs/sft/retain.yaml").read_text(encoding="utf-8"))
    folder = run(config, "train.max_steps=4", "train.eval_steps=2", cwd=tmp_path)
    measured = {
        line["step"]: line["eval/retain/texts/loss"] for line in metrics(folder) if "eval/retain/texts/loss" in line
    }
    assert measured.keys() == {0, 2, 4}
    found = json.loads((folder / "manifest.json").read_text())["metrics"]
    assert (found["retain/texts/loss_before"], found["retain/texts/loss_after"]) == (measured[0], measured[4])
    assert "| retain/texts/loss_before |" in (folder / "model/README.md").read_text(encoding="utf-8")
    assert [line["regularization/penalty"] > 0 for line in metrics(folder) if "loss" in line] == [False, *[True] * 3]
