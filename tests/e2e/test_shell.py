"""A run in a hostile shell: it trains on without its terminal, imports nothing that merely lies about, and says in a
sentence what it cannot do without."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scaleup.launcher.addresses import ELSEWHERE
from tests.cli import alive, differing, folder_of, logs, metrics, reached, scaleup, wait_until, worker_ids, write_config
from tests.conftest import REPOSITORY
from tests.small_runs import SFT

CONFIG = differing(SFT, {"parallel": {"num_processes": 2}})
INSTALLED = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from scaleup.cli import main; main()"
"""Is what the command `scaleup` does, whatever lies in the working folder."""
ODD = {
    "LC_ALL": "C",
    "TERM": "dumb",
    "COLUMNS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "4,2",
    "MKL_NUM_THREADS": "",
    "NUMEXPR_MAX_THREADS": "many",
    "SLURM_JOB_ID": "1",
    "SLURM_HET_SIZE": "",
    "SLURM_JOB_NUM_NODES": "",
}


def start(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, **streams: Any) -> Any:
    command = [sys.executable, "-P", "-c", INSTALLED, *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env={**os.environ, **(env or {})}, **streams)


@pytest.mark.slow
def test_everything_odd_at_once(place: Path) -> None:
    """Under nohup the reader of stdout ends after a line, stdin and stderr are closed, 256 files may be open; modules
    and another package stand in the way, variables are lists, words or empty, names are of any script."""
    for name in ("random.py", "json.py", "types.py", "torch.py", "yaml.py"):
        (place / name).write_text("raise ImportError('what lies in the working folder')")
    (place / "other/scaleup").mkdir(parents=True)
    (place / "other/scaleup/__init__.py").write_text("raise ImportError('another scaleup')")
    rows = place / "дані"
    rows.mkdir()
    (place / "rows.jsonl").rename(rows / "行 [x].jsonl")
    config = differing(CONFIG, {"name": "odd", "runs_dir": "läufe [/b]:smile:", "data.train": "дані/行 [x].jsonl"})

    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.close(0)
        os.close(2)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    env = {**ODD, "PYTHONPATH": f"{place / 'other'}"}
    process = start("run", write_config(config, place), cwd=place, env=env, stdout=subprocess.PIPE, preexec_fn=prepare)
    try:
        assert process.stdout.readline()
        process.stdout.close()
        process.send_signal(signal.SIGHUP)
        code = process.wait(120)
    finally:
        process.kill()
        (rows / "行 [x].jsonl").rename(place / "rows.jsonl")
        for name in ("random.py", "json.py", "types.py", "torch.py", "yaml.py"):
            (place / name).unlink()
    folder = folder_of(config, place)
    assert code == 0, logs(folder)
    assert (folder / "manifest.json").is_file() and len(metrics(folder)) >= 6


@pytest.mark.parametrize("command", ["doctor", "schema"])
def test_tables_without_a_reader(command: str, place: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        process = start(command, cwd=place, env={"PYTHONIOENCODING": "ascii"}, stdout=pipe, stderr=-1)
        _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (0, b"")


@pytest.mark.parametrize("command", ["schema", "--version"])
def test_what_is_printed_to_a_full_disk_is_missed(command: str, place: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(command, cwd=place, stdout=full, stderr=-1)
        _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (
        1,
        b"error: stdout: what was printed is not whole: No space left on device\n",
    )


@contextmanager
def terminal(*arguments: str | Path, cwd: Path) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], None]]]:
    """The command on a terminal of its own, and what closes that terminal."""
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    process = start(*arguments, cwd=cwd, preexec_fn=lambda: os.login_tty(theirs))
    os.close(theirs)
    try:
        yield process, lambda: os.close(ours)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_pause_and_a_terminal_that_is_closed(place: Path) -> None:
    """Ctrl-Z stops the agent alone: workers train on, and `fg` finds them. A terminal that is closed sends SIGHUP: they
    save."""
    config = differing(CONFIG, {"name": "terminal", "train.max_steps": 5000, "train.save_steps": 5000})
    folder = folder_of(config, place)
    with terminal("run", write_config(config, place), cwd=place) as (process, close):
        wait_until(lambda: reached(3)(folder) or process.poll() is not None)
        process.send_signal(signal.SIGTSTP)
        wait_until(lambda: reached(60)(folder))
        assert process.poll() is None
        process.send_signal(signal.SIGCONT)
        close()
        assert process.wait(60) == 75, logs(folder)
    step = metrics(folder)[-1]["step"]
    assert json.loads((folder / "resumable.json").read_text()) == {"step": step, "num_steps": 5000}
    assert alive(worker_ids(folder)) == []


def test_a_worker_that_does_not_even_start_says_why(place: Path) -> None:
    """On the terminal: what torchrun or Python said is in a log that nobody looks at."""
    (place / "broken/accelerate").mkdir(parents=True)
    (place / "broken/accelerate/__init__.py").write_text("raise ImportError('libfabric.so.1: cannot open it')")
    config = differing(CONFIG, {"name": "broken", "parallel.num_processes": 2})
    path = write_config(config, place)
    assert scaleup("run", path, "name=whole", "train.max_steps=1", cwd=place).code == 0  # its model is described once
    result = scaleup("run", path, cwd=place, env={"PYTHONPATH": str(place / "broken")})
    assert result.code == 1
    why = "ImportError: libfabric.so.1: cannot open it (policy-node0.log)"
    assert result.stderr.startswith(f"error: group policy ended with exit code 1: {why}\n")
    assert f"logs: {folder_of(config, place)}" in result.stderr and "Traceback" not in result.stderr


def test_a_broken_installation_is_told_before_anything_starts(place: Path) -> None:
    (place / "broken/torch").mkdir(parents=True)
    (place / "broken/torch/__init__.py").write_text("raise ImportError('libtorch_cpu.so: cannot open it')")
    env = {"PYTHONPATH": str(place / "broken"), "XDG_CACHE_HOME": str(place / "own cache")}
    result = scaleup("plan", write_config(differing(CONFIG, {"name": "no-torch"}), place), cwd=place, env=env)
    assert (result.code, result.stderr) == (
        2,
        "error: model: looking at it failed: ImportError: libtorch_cpu.so: cannot open it -> see what `scaleup doctor` "
        f"says of this machine; all that it said is in {place / 'own cache/scaleup/describe.log'}\n",
    )


@pytest.mark.slow
def test_nodes_that_do_not_meet_end_within_the_timeout(place: Path) -> None:
    """At an address that no host has: nobody answers, or what answers is no worker."""
    parallel = {"num_processes": 2, "num_nodes": 2, "timeout_seconds": 12, "main_address": ELSEWHERE}
    for code, stderr in both(differing(SFT, {"name": "elsewhere", "parallel": parallel}), place):
        assert code == 1 and ": see parallel.main_address, parallel.interface\n" in stderr, stderr


def test_a_main_address_that_stands_for_nothing_is_refused(place: Path) -> None:
    parallel = {"num_processes": 2, "num_nodes": 2, "main_address": "no-such-host.invalid"}
    for code, stderr in both(differing(SFT, {"name": "nowhere", "parallel": parallel}), place):
        assert code == 2
        assert stderr.startswith(
            "error: parallel.main_address: 'no-such-host.invalid' stands for no address (IPv4) on "
        )


def both(config: Mapping[str, Any], place: Path) -> list[tuple[int, str]]:
    """How the agents of two nodes end: exit codes and what they say. The second waits for the first: what that refuses
    before anybody looks is an earlier start's."""
    command = ("run", write_config(config, place))
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    agents = [start(*command, "--node-rank", "1", cwd=place, **pipes)]
    wait_until((folder_of(config, place).parent / f".{config['name']}.node1.lock").is_file)
    agents.append(start(*command, "--node-rank", "0", cwd=place, **pipes))
    said = [agent.communicate(timeout=90)[1] for agent in agents]
    return [(agent.returncode, text) for agent, text in zip(agents, said, strict=True)]
