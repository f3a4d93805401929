"""A teacher that speaks once, before training: of the whole vocabulary, the student is that of a teacher at its side,
whatever the rows' order and the number of processes; and a run that is killed in between does not ask it again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.cli import (
    differing,
    folder_of,
    interrupt,
    largest_loss_difference,
    largest_weight_difference,
    logs,
    losses,
    metrics,
    reached,
    run,
    worker_ids,
)
from tests.forked_runs import train

pytestmark = pytest.mark.slow
CONFIG: dict[str, Any] = {
    "stage": "distill",
    "model": {"path": "builtin:tiny-llama"},
    "teacher": {"path": "builtin:tiny-qwen2"},
    "distill": {"temperature": 2.0, "alpha": 0.7},
    "data": {
        "train": [{"path": "one.jsonl", "weight": 2}, "two.jsonl"],
        "validation": "held.jsonl",
        "prompt": "{ask}:",
        "completion": " {say}",
        "max_length": 48,
    },
    "train": {
        "max_steps": 6,
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "eval_steps": 3,
    },
    "parallel": {"strategy": "single", "num_processes": 1},
}
T5 = {"teacher.path": "builtin:tiny-t5", "model.path": "builtin:tiny-t5", "distill.student_layers": [1]}
PRUNE = {
    "stage": "prune",
    "teacher": None,
    "distill": None,
    "train": None,
    "prune": {"intermediate_size": 64, "calibration_rows": 8},
    "recovery": {"train": CONFIG["train"], "distill": CONFIG["distill"], "control": True},
}
SAME: dict[str, dict[str, Any]] = {
    "plain": {},
    "t5": T5,
    "length": {"train.group_by_length": True},
    "tokens": {"train.tokens_per_device": 96, "train.per_device_train_batch_size": None},
    "written": {"distill.mode": "sequence", "distill.generation": {"max_new_tokens": 6}},
    "lora": {"adapter": {"type": "lora", "r": 4, "target_modules": "all-linear"}},
    "prompt": {"adapter": {"type": "prompt_tuning", "num_virtual_tokens": 5}},
    "pruned": PRUNE,
    "low-fsdp2": {"mixed_precision": "bf16", "parallel.strategy": "fsdp2"},
    "low-zero3": {"mixed_precision": "bf16", "parallel.strategy": "zero3"},
}
"""What is trained both with the teacher beside the student, and with what it said: the same."""
SPLIT = {"train.per_device_train_batch_size": 1, "train.gradient_accumulation_steps": 2, "parallel.num_processes": 2}
STRATEGIES = ("ddp",)  # the others: tests/distributed/test_distillation.py


def config_of(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    made = differing(CONFIG, {**changes, "name": name})
    return {key: without_nulls(value) for key, value in made.items() if value is not None}


def without_nulls(value: Any) -> Any:
    return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value


def cached(changes: dict[str, Any]) -> dict[str, Any]:
    """Of every token there is."""
    key = "recovery.distill.cache" if changes is PRUNE else "distill.cache"
    return {**deepcopy(changes), key: {"top_k": 258 if changes is T5 else 259}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cached")
    for name, count in (("one", 13), ("two", 7), ("held", 5)):
        rows = [{"ask": f"{name} {'film ' * (row % 4)}{row}", "say": "good" * (1 + row % 3)} for row in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, Path]:
    configs = {name: config_of(name, changes) for name, changes in SAME.items()}
    configs |= {f"{name}-cached": config_of(f"{name}-cached", cached(changes)) for name, changes in SAME.items()}
    for strategy in STRATEGIES:
        configs[strategy] = config_of(strategy, cached({**SPLIT, "parallel.strategy": strategy}))
    configs["few"] = config_of("few", {"distill.cache": {"top_k": 3}})
    return train(configs, place)


@pytest.mark.timeout(400)  # the first waits for all
@pytest.mark.parametrize("name", SAME)
def test_the_whole_vocabulary_is_the_teacher_itself(name: str, runs: dict[str, Path]) -> None:
    one, other = runs[name], runs[f"{name}-cached"]
    if SAME[name] is PRUNE:
        one, other = one / "distilled/1/trained", other / "distilled/1/trained"
        assert not (other.parents[2] / "control/1/trained/teacher").exists(), "the control has no teacher"
    assert_same(one, other, 1e-3 if name.startswith("low") else 1e-5)
    assert (other / "teacher/top_k/index.json").is_file()
    assert not (one / "teacher/top_k").exists()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_is_one_process(strategy: str, runs: dict[str, Path]) -> None:
    assert_same(runs["plain"], runs[strategy])
    assert len(list((runs[strategy] / "teacher/top_k").glob("ids-*.npy"))) == 2


def assert_same(one: Path, other: Path, most: float = 1e-5) -> None:
    """In bfloat16 a sharded teacher rounds where the one that speaks beforehand, under autocast, does not."""
    found = [
        [(line["step"], key, line[key]) for line in metrics(folder) for key in ("loss", "eval_loss") if key in line]
        for folder in (one, other)
    ]
    assert [line[:2] for line in found[0]] == [line[:2] for line in found[1]] and len(found[0]) == 8
    assert [line[2] for line in found[0]] == pytest.approx([line[2] for line in found[1]], abs=most)
    assert largest_weight_difference(one, other) < most


def test_a_few_tokens_teach_something_else(runs: dict[str, Path]) -> None:
    found, whole = losses(runs["few"]), losses(runs["plain"])
    assert found[6] < found[1]
    assert found[1] < whole[1] - 1e-3, "a divergence over fewer events is smaller"


def test_a_run_that_is_killed_does_not_ask_again(place: Path) -> None:
    """The files are the very ones, and the trajectory is that of a run that nobody touched."""
    changes = {"distill.cache": {"top_k": 8}, "train.max_steps": 48, "train.save_steps": 3, "train.eval_steps": None}
    changes |= {"parallel": {"strategy": "ddp", "num_processes": 2, "max_restarts": 1}}
    straight = run(config_of("straight", changes), cwd=place)
    config, before = config_of("killed", changes), {}

    def kill(process: subprocess.Popen[str], folder: Path) -> None:
        os.kill(worker_ids(folder, "1")[0], signal.SIGKILL)
        before.update(stats(folder))

    def has_saved(folder: Path) -> bool:
        return reached(5)(folder) and any((folder / "checkpoints").glob("step-*"))

    result = interrupt(config, cwd=place, when=has_saved, do=kill)
    folder = folder_of(config, place)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    assert "restart 1 of 1 from step" in result.stdout
    assert len(before) == 5 and stats(folder) == before
    assert largest_loss_difference(straight, folder) == 0
    assert largest_weight_difference(straight, folder) == 0


def stats(folder: Path) -> dict[str, tuple[int, int]]:
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in (folder / "teacher/top_k").iterdir()}
