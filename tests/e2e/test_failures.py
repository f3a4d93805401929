"""Runs that go wrong end with a name for what went wrong, keep what was good, and leave nothing running."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from scaleup.artifacts.checkpoints import whole_checkpoints
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import load_leniently
from scaleup.launcher.prepare import prepare_run
from scaleup.plan.resolve import resolve
from tests.cli import (
    Result,
    alive,
    children,
    command_line,
    differing,
    folder_of,
    interrupt,
    logs,
    losses,
    metrics,
    rank_states,
    reached,
    run,
    scaleup,
    wait_until,
    worker_ids,
    write_config,
)
from tests.small_runs import SFT

CONFIG = differing(SFT, {"train.max_steps": 60, "train.save_steps": 2, "parallel": {"num_processes": 2}})


def assert_ended(result: Result, folder: Path, code: int) -> None:
    """With that code, no manifest, no model, and no process left."""
    assert result.code == code, f"exit code {result.code}\n{result.stdout}\n{result.stderr}\n{logs(folder)}"
    assert not (folder / "manifest.json").exists() and not (folder / "model").exists()
    assert worker_ids(folder), "the run never started its workers"
    assert alive(worker_ids(folder)) == []


def steps_saved(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in whole_checkpoints(folder / "checkpoints")]


def test_a_loss_that_is_not_finite_stops_the_run(place: Path) -> None:
    changes = {
        "name": "nan",
        "train.optimizer": "sgd",
        "train.learning_rate": 1e30,
        "train.max_grad_norm": 0,
        "train.lr_scheduler_type": "constant",
        "train.save_steps": 1,
        "parallel.max_restarts": 2,
    }
    config = differing(CONFIG, changes)
    result = scaleup("run", write_config(config, place), cwd=place)
    folder = folder_of(config, place)
    assert_ended(result, folder, 2)
    last = metrics(folder)[-1]["step"]
    assert f"error: training step {last + 1}: the " in result.stderr
    assert not (folder / "attempts" / "2").exists(), "it would come again"
    assert f"the last good checkpoint is step {last}" in result.stderr
    assert "Traceback" not in result.stderr
    assert steps_saved(folder)[-1] == last
    newest = whole_checkpoints(folder / "checkpoints")[-1]
    assert all(np.isfinite(weight).all() for weight in load_file(newest.path / "model.safetensors").values())


@pytest.mark.slow
def test_a_full_disk_loses_no_earlier_checkpoint(place: Path) -> None:
    """Files of the running workers may suddenly have no more than 100 KB: a write ends in EFBIG as it would in
    ENOSPC. (Root could mount a small file system; anybody can do this.)"""
    config = differing(CONFIG, {"name": "full-disk", "train.max_steps": 160, "train.save_steps": 20})

    def fill(process: subprocess.Popen[str], folder: Path) -> None:
        for pid in worker_ids(folder):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    def saved(folder: Path) -> bool:
        return (folder / "checkpoints" / "step-00000040").is_dir()

    result = interrupt(config, cwd=place, when=saved, do=fill)
    folder = folder_of(config, place)
    assert_ended(result, folder, 2)
    [*_, last] = kept = steps_saved(folder)
    assert kept == [last - 20, last]
    assert f"step-{last + 20:08d}: cannot be written (" in result.stderr
    assert f"the last good checkpoint is step {last} -> make room on the disk" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(entry.name for entry in (folder / "checkpoints").iterdir()) == [f"step-{step:08d}" for step in kept]

    before = losses(folder)
    run(config, "--resume", cwd=place)
    assert steps_saved(folder) == [140, 160]
    assert list(losses(folder)) == list(range(1, 161))
    assert {step: losses(folder)[step] for step in before} == before


def test_a_disk_that_is_full_before_anything_starts(place: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small disk of our own needs root, and leave to mount")
    try:
        (small / "fill").write_bytes(bytes(65_536))
        config = CONFIG | {"name": "x", "runs_dir": str(small)}
        result = scaleup("run", write_config(config, place), cwd=place)
    finally:
        subprocess.run(["umount", small], check=True)
    assert result.code == 2, result.stderr
    remedy = "make room there, or name another folder"
    assert result.stderr == f"error: runs_dir: {small} cannot be written: No space left on device -> {remedy}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("disk", "size", "changes", "words"),
    [
        ("cache", "300k", {}, "error: model.path: cannot write to {}/scaleup/builtin: "),
        ("runs", "3m", {"runs_dir": "{}"}, "error: checkpoint {}/x/checkpoints/step-000000"),
    ],
)
def test_a_small_disk_that_fills_up(
    disk: str, size: str, changes: dict[str, str], words: str, place: Path, tmp_path: Path
) -> None:
    """Mounted where nobody else sees it; what is there afterwards is written down from within."""
    small = tmp_path / disk
    small.mkdir()
    config = differing(CONFIG, {"name": "x", "parallel.num_processes": 1, "train.save_steps": 5})
    config = differing(config, {key: value.format(small) for key, value in changes.items()})
    command = [sys.executable, "-m", "scaleup.cli", "run", str(write_config(config, place))]
    script = (
        'mount -t tmpfs -o "size=$0" tmpfs "$1" || exit 99; where=$1; shift; "$@"; code=$?; find "$where"; exit $code'
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(small if disk == "cache" else tmp_path)}
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("a small disk of our own needs root, and unshare")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, size, small, *command],
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip("a small disk of our own needs leave to mount")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(words.format(small)) and done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
    left = [Path(line) for line in done.stdout.splitlines() if line.startswith(str(small))]
    assert not [file for file in left if file.name == "manifest.json" or file.name.endswith(".tmp")]
    steps = [file for file in left if file.name.startswith("step-")]
    assert all(folder / "checkpoint.json" in left for folder in steps)


@pytest.mark.slow
def test_a_flipped_bit_costs_the_steps_since_the_checkpoint_before(place: Path) -> None:
    """In the newest checkpoint of a run that was stopped: no size tells. The user is told; both ranks go on alike."""
    config = differing(CONFIG, {"name": "flipped", "train.max_steps": 400, "train.save_steps": 50})
    interrupt(config, cwd=place, when=reached(120), do=lambda process, folder: process.send_signal(signal.SIGTERM))
    folder = folder_of(config, place)
    before, newest = whole_checkpoints(folder / "checkpoints")[-2:]
    weights = newest.path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1 << 4
    weights.write_bytes(content)

    lost = losses(folder)
    result = scaleup("run", write_config(config, place), "--resume", cwd=place)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    name = newest.path.name
    why = f"model.safetensors does not match its checksum; it is {name}.damaged now"
    assert f"checkpoint {name} is not used: {why}\nthe run goes on from step {before.step}\n" in result.stdout
    assert list(losses(folder)) == list(range(1, 401))
    assert {step: losses(folder)[step] for step in lost} == lost


def test_ctrl_c_saves_and_can_go_on(place: Path) -> None:
    config = differing(CONFIG, {"name": "ctrl-c", "train.max_steps": 1000, "train.save_steps": 500})
    result = interrupt(
        config, cwd=place, when=reached(4), do=lambda process, folder: process.send_signal(signal.SIGINT)
    )
    folder = folder_of(config, place)
    assert_ended(result, folder, 75)
    step = metrics(folder)[-1]["step"]
    assert json.loads((folder / "resumable.json").read_text()) == {"step": step, "num_steps": 1000}
    assert steps_saved(folder) == [step]
    assert "was stopped and can go on" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_stage_that_saves_nothing_ends_soon(place: Path) -> None:
    """Over rows that would keep it for long."""
    row = json.dumps({"prompt": "abc " * 20, "completion": "d " * 40}) + "\n"
    (place / "many.jsonl").write_text(row * 20_000, encoding="utf-8")
    data = {"test": "many.jsonl", "prompt": "{prompt}", "completion": "{completion}", "max_length": 256}
    config = {"stage": "evaluate", "name": "endless", "model": {"path": "builtin:tiny-llama"}, "data": data}

    def evaluates(folder: Path) -> bool:
        return "perplexity" in rank_states(folder).get("policy-rank0", {}).get("phase", "")

    result = interrupt(config, cwd=place, when=evaluates, do=lambda process, folder: process.terminate())
    assert_ended(result, folder_of(config, place), 75)
    assert "was stopped and can go on" in result.stdout
    assert "error" not in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_while_workers_start_leaves_nothing(place: Path, processes: int) -> None:
    """A worker is there and has not told anybody yet: its launcher has to take it along."""
    config = differing(CONFIG, {"name": f"stopped-early-{processes}", "parallel.num_processes": processes})
    started: list[int] = []

    def stop_at_once(process: subprocess.Popen[str], folder: Path) -> None:
        wait_until(lambda: bool(children(process.pid)), every=0.001)
        [launcher] = children(process.pid)
        wait_until(lambda: started.extend(workers_of(launcher)) or bool(started), every=0.001)
        process.terminate()
        started.extend(workers_of(launcher))

    folder = folder_of(config, place)
    result = interrupt(config, cwd=place, when=lambda folder: launcher_log(folder).exists(), do=stop_at_once)
    assert started
    assert alive([*started, *worker_ids(folder)]) == []
    assert result.code == 75, f"{result.stderr}\n{logs(folder)}"
    assert not (folder / "manifest.json").exists()


def launcher_log(folder: Path) -> Path:
    return folder / "attempts" / "1" / "logs" / "policy-node0.log"


def workers_of(launcher: int) -> list[int]:
    """Not the other programs that a launcher asks about the machine."""
    return [pid for pid in children(launcher) if "scaleup.worker" in command_line(pid)]


@pytest.mark.slow
def test_an_error_of_ours_shows_its_traceback_and_the_logs(place: Path) -> None:
    """A folder where the log of metrics belongs: no user's mistake, and nothing checks for it."""
    config = differing(CONFIG, {"name": "internal", "runs_dir": str(place / "runs"), "data.root": str(place)})
    file = write_config(config, place)
    config_read, plan = resolve(load_leniently(file, ()))
    prepare_run(prepared := RunFolder(folder_of(config, place)), config_read, plan)
    prepared.metrics_file.mkdir()
    result = scaleup("run", file, "--resume", cwd=place)
    assert_ended(result, prepared.path, 1)
    assert "Traceback (most recent call last)" in result.stderr
    assert "policy-rank0 failed: IsADirectoryError" in result.stderr or "Is a directory" in result.stderr
    assert "no checkpoint was saved" in result.stderr
    assert f"logs: {prepared.path / 'attempts' / '1' / 'logs'}" in result.stderr
