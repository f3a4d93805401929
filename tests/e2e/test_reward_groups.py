"""A run with two reward groups and a function: one group is killed, the other is resized while the policy waits, and
the run ends like the one that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.timeline import read_timelines
from tests.cli import folder_of, interrupt, largest_weight_difference, logs, metrics, reached, run, scaleup, wait_until

pytestmark = pytest.mark.slow
ROLLOUTS = 24
"""Enough that none is over before what befalls it."""
SCORER: dict[str, Any] = {"model": {"path": "builtin:tiny-bert-classifier"}, "template": "{response}"}
RL: dict[str, Any] = {
    "stage": "rl",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "max_length": 32},
    "algorithm": {"type": "rloo", "num_generations": 2, "beta": 0.02},
    "rollouts": {"num_rollouts": ROLLOUTS, "batch_size": 8, "max_new_tokens": 6},
    "rewards": [
        {"name": "good", "label": "positive", **SCORER},
        {"name": "bad", "label": "negative", "weight": -0.5, **SCORER},
        {"name": "vowels", "weight": 0.2, "placement": "function", "function": "vowels.py:vowels"},
    ],
    "train": {"learning_rate": 1e-4, "save_steps": 8},
}
FUNCTION = """
def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in text) for text in completions]
"""


@pytest.fixture(scope="module")
def undisturbed(place: Path, pool: ThreadPoolExecutor) -> Future[Path]:
    (place / "vowels.py").write_text(FUNCTION)
    beside = [reward | {"placement": reward.get("placement", "colocated")} for reward in RL["rewards"]]
    return pool.submit(run, RL | {"name": "undisturbed", "rewards": beside}, cwd=place)


def pid_of(folder: Path, rank_name: str) -> int:
    """Of the newest worker of that name that has registered; 0 where there is none."""
    file = folder / "attempts/1/workers" / f"{rank_name}.json"
    return json.loads(file.read_text())["pid"] if file.is_file() else 0


def test_one_group_is_killed_and_another_grows(place: Path, undisturbed: Future[Path]) -> None:
    config = RL | {"name": "disturbed"}
    policies: list[int] = []

    def kill_and_resize(process: subprocess.Popen[str], folder: Path) -> None:
        policies.append(pid_of(folder, "policy-rank0"))
        killed = pid_of(folder, "reward-bad-rank0")
        os.kill(killed, signal.SIGKILL)
        assert scaleup("resize", folder, "reward-good", "2", cwd=place).code == 0
        wait_until(lambda: pid_of(folder, "reward-bad-rank0") not in (0, killed))
        wait_until(lambda: pid_of(folder, "reward-good-rank1") != 0)

    result = interrupt(config, cwd=place, when=reached(2), do=kill_and_resize)
    folder = folder_of(config, place)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    assert "reward-bad-rank0 was killed by signal 9; restart 1 of 3 of group reward-bad alone" in result.stdout
    assert "group reward-good starts again with 2 process(es)" in result.stdout
    assert [attempt.name for attempt in (folder / "attempts").iterdir()] == ["1"]
    assert pid_of(folder, "policy-rank0") == policies[0]
    assert not list(folder.glob("*-lost.json"))

    timelines = read_timelines(folder / "timeline")
    assert list(timelines) == ["policy", "reward-bad", "reward-good"]
    assert {span.what for span in timelines["policy"]} >= {"generation", "forward", "training"}
    assert len([span for span in timelines["reward-bad"] if span.what == "scoring"]) >= ROLLOUTS
    assert (folder / "timeline.png").is_file()

    keys = ["reward", *(f"rewards/{name}/mean" for name in ("good", "bad", "vowels"))]
    left, right = (
        [[line[key] for key in keys] for line in metrics(each) if "reward" in line]
        for each in (folder, undisturbed.result())
    )
    assert len(left) == ROLLOUTS
    assert [sum(row) for row in left] == pytest.approx([sum(row) for row in right], abs=1e-5)
    assert largest_weight_difference(folder, undisturbed.result()) < 1e-5
