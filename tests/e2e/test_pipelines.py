"""A pipeline killed twenty times ends as one that was not; a change makes again what it touches, and nothing else."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli import Result, children, largest_weight_difference, reached, scaleup, start, wait_until
from tests.small_runs import SFT, write_rows

pytestmark = pytest.mark.slow

TRAIN = {"max_steps": 120, "learning_rate": 1e-3, "per_device_train_batch_size": 2, "save_steps": 5}
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
    "beside": {"config": {**FIRST, "model": {"path": "${first}"}, "train": {**TRAIN, "seed": 1}}},
    "first": {"config": FIRST},
}
NUM_LINES = 10  # that a pipeline prints until both runs side by side train


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
    (folder / "chain.yaml").write_text(
        yaml.safe_dump({"pipeline": "chain", "num_parallel": 2, "runs": runs}), encoding="utf-8"
    )
    return folder


def manifests(place: Path) -> dict[str, str]:
    return {file.parent.name: file.read_text() for file in (place / "runs").glob("*/manifest.json")}


def with_all_below(pid: int) -> list[int]:
    return [pid, *(each for child in children(pid) for each in with_all_below(child))]


def killed(place: Path, num_lines: int, with_runs: bool) -> str | None:
    """Kill a pipeline's own process, or it and all of its runs', once it has printed so many lines. Gives what it
    printed; None if it has finished."""
    with start("run", "chain.yaml", cwd=place) as process:
        assert process.stdout is not None and process.stderr is not None
        said = [line for line, _ in zip(process.stdout, range(num_lines), strict=False)]
        for pid in with_all_below(process.pid) if with_runs else [process.pid]:
            os.kill(pid, signal.SIGKILL)
        if process.wait() == 0:
            return None
        assert process.returncode == -signal.SIGKILL, "".join(said) + process.stderr.read()
    return "".join(said)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_kills", [6, pytest.param(20, marks=pytest.mark.long)])
def test_killed_changed_and_stopped(tmp_path: Path, num_kills: int) -> None:
    straight = write_pipeline(tmp_path / "straight", "first", "second", "beside")
    said = run(straight).stdout
    assert said.index("beside | training") < said.index("second | writing"), "they ran side by side"
    places = [write_pipeline(tmp_path / "killed", "first", "second", "beside", "third")]

    draw, resumed, seen = random.Random(0), set(), 0
    while seen < num_kills:
        num_lines = draw.choice([0, *range(4, NUM_LINES + 1)])
        told = killed(places[-1], num_lines, with_runs=seen % 2 == 0)
        if told is None:  # it came to its end: the next one is killed
            places.append(write_pipeline(tmp_path / f"killed-{len(places)}", "first", "second", "beside", "third"))
            continue
        resumed |= {line.split()[0] for line in told.splitlines() if line.endswith("resume  not finished")}
        seen += 1
    assert resumed >= {"second", "beside"}, "it was not killed in the middle"
    run(places[-1])
    for place in places:
        for name in ("chain-first", "chain-second", "chain-beside"):
            assert largest_weight_difference(straight / "runs" / name, place / "runs" / name) == 0, name
        assert not list((place / "runs").glob("*.old-*")), "nothing was made again"
    assert run(place).stdout.splitlines()[-1] == "pipeline chain has finished already; nothing to do"

    before = manifests(place)
    changed = "second.train.learning_rate=2e-3"
    aside = place / "runs/chain-second.old-1"
    stopped = interrupted(
        place, changed, number=signal.SIGTERM, when=lambda folder: aside.is_dir() and reached(4)(folder)
    )
    assert stopped.code == 75, stopped.stdout + stopped.stderr
    assert stopped.stdout.splitlines()[-1] == f"pipeline chain goes on with: scaleup run chain.yaml {changed}"
    left = {name: text for name, text in before.items() if name != "chain-second"}
    assert manifests(place) == {**left, "chain-second.old-1": before["chain-second"]}
    assert run(place, changed, "--dry-run").stdout.splitlines()[:4] == [
        "first   skip    finished and unchanged",
        "beside  skip    finished and unchanged",
        "second  resume  not finished",
        "third   again   second is made before it",
    ]
    tree = scaleup("lineage", "runs/chain-third", "--json", cwd=place)
    assert json.loads(tree.stdout)["stale"] == [f"model.path: {place}/runs/chain-second is gone or not finished"]
