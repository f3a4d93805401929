"""A pipeline killed in the middle ends as one that was not; a change makes again what it touches, and nothing else."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli import Result, alive, largest_weight_difference, reached, scaleup, start, wait_until, worker_ids
from tests.small_runs import SFT, write_rows

pytestmark = pytest.mark.slow

TRAIN = {"max_steps": 40, "learning_rate": 1e-3, "per_device_train_batch_size": 2, "save_steps": 2}
SINGLE = {"num_processes": 1, "strategy": "single"}
FIRST: dict[str, Any] = {**SFT, "train": {**TRAIN, "max_steps": 4}, "parallel": SINGLE}
RUNS: dict[str, Any] = {
    "third": {
        "config": {
            "stage": "generate",
            "model": {"path": "${second}"},
            "generation": {"prompts": ["ab"], "max_new_tokens": 8},
            "parallel": SINGLE,
        }
    },
    "second": {"config": {**FIRST, "model": {"path": "${first}"}, "train": TRAIN}},
    "first": {"config": FIRST},
}


def run(place: Path, *arguments: str, code: int = 0) -> Result:
    result = scaleup("run", "chain.yaml", *arguments, cwd=place)
    assert result.code == code, result.stdout + result.stderr
    return result


def interrupted(place: Path, *arguments: str, number: signal.Signals, when: Callable[[Path], bool]) -> Result:
    """Send the pipeline's own process a signal once the second run has come so far."""
    with start("run", "chain.yaml", *arguments, cwd=place) as process:
        wait_until(lambda: process.poll() is not None or when(place / "runs/chain-second"), every=0.002)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=120)
    return Result(process.returncode, stdout, stderr)


def write_pipeline(folder: Path, *names: str) -> Path:
    folder.mkdir()
    write_rows(folder)
    runs = {name: entry for name, entry in RUNS.items() if name in names}
    (folder / "chain.yaml").write_text(yaml.safe_dump({"pipeline": "chain", "runs": runs}), encoding="utf-8")
    return folder


def manifests(place: Path) -> dict[str, str]:
    return {file.parent.name: file.read_text() for file in (place / "runs").glob("*/manifest.json")}


@pytest.mark.timeout(900)
def test_killed_changed_and_stopped(tmp_path: Path) -> None:
    straight = write_pipeline(tmp_path / "straight", "first", "second")
    run(straight)
    place = write_pipeline(tmp_path / "killed", "first", "second", "third")

    assert interrupted(place, number=signal.SIGKILL, when=reached(4)).code == -signal.SIGKILL
    wait_until(lambda: not alive(worker_ids(place / "runs/chain-second")))
    assert manifests(place).keys() == {"chain-first"}, "it was not killed in the middle"
    first = manifests(place)["chain-first"]
    said = run(place).stdout.splitlines()
    assert said[:3] == [
        "first   skip    finished and unchanged",
        "second  resume  not finished",
        "third   run     after second",
    ]
    assert manifests(place)["chain-first"] == first
    for name in ("chain-first", "chain-second"):
        assert largest_weight_difference(straight / "runs" / name, place / "runs" / name) == 0, name
    assert run(place).stdout.splitlines()[-1] == "pipeline chain has finished already; nothing to do"

    before = manifests(place)
    changed = "second.train.learning_rate=2e-3"
    aside = place / "runs/chain-second.old-1"
    stopped = interrupted(
        place, changed, number=signal.SIGTERM, when=lambda folder: aside.is_dir() and reached(4)(folder)
    )
    assert stopped.code == 75, stopped.stdout + stopped.stderr
    assert stopped.stdout.splitlines()[-1] == f"pipeline chain goes on with: scaleup run chain.yaml {changed}"
    assert manifests(place) == {
        "chain-first": before["chain-first"],
        "chain-second.old-1": before["chain-second"],
        "chain-third": before["chain-third"],
    }
    assert run(place, changed, "--dry-run").stdout.splitlines()[:3] == [
        "first   skip    finished and unchanged",
        "second  resume  not finished",
        "third   again   second is made before it",
    ]
    tree = scaleup("lineage", "runs/chain-third", "--json", cwd=place)
    assert json.loads(tree.stdout)["stale"] == [f"model.path: {place}/runs/chain-second is gone or not finished"]
