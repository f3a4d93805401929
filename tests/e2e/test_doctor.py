"""`scaleup doctor` as users call it: on this machine, on a config that is all wrong, on two nodes at once, which are
agents of this machine or hosts with names and addresses of their own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cli import Result, differing, scaleup, write_config
from tests.conftest import REPOSITORY
from tests.e2e.mistakes.case import GOOD, GOOD_ROW
from tests.hosts import Host, hosts

DOCTOR = [sys.executable, "-m", "scaleup.cli", "doctor"]
TWO_NODES = {"parallel.num_processes": 2, "parallel.num_nodes": 2}
TIMEOUT = 240.0
Row = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all of them: what was found out about a model is found out once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("rows.jsonl", "held.jsonl"):
        (tmp_path / name).write_text((GOOD_ROW + "\n") * 8)
    return tmp_path


def findings(result: Result) -> dict[str, Row]:
    """The rows by name, the worst of those that share one."""
    assert result.stdout, result.stderr
    rows: list[Row] = sorted(json.loads(result.stdout), key=lambda row: ("ok", "warn", "fail").index(row["level"]))
    return {row["name"]: row for row in rows}


def test_this_machine(tmp_path: Path) -> None:
    result = scaleup("doctor", cwd=tmp_path, env={"COLUMNS": "80"})
    assert result.code == 0, result.stdout + result.stderr
    for name in ("python", "packages", "CPU", "torch", "/dev/shm", "address", "runs_dir", "write speed"):
        assert any(line.startswith(name) for line in result.stdout.splitlines()), name
    assert max(map(len, result.stdout.splitlines())) <= 80 and "\x1b" not in result.stdout
    assert result.stdout.splitlines()[-1].endswith(" 0 failed")
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_can_run(folder: Path) -> None:
    result = scaleup("doctor", write_config(GOOD, folder), "--json", cwd=folder)
    rows = findings(result)
    assert result.code == 0, result.stdout
    assert {"plan", "cores", "memory", "disk space", "tokenizer of model"} <= rows.keys()
    assert "estimate" in rows["disk space"]["what"]
    assert all(row["node_rank"] == 0 and row["host"] == socket.gethostname() for row in rows.values())
    assert not (folder / "runs").exists()


def test_everything_wrong_is_said_at_once(folder: Path) -> None:
    lock = folder / "extensions" / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (1e9, 1e9))
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        wrong = differing(
            GOOD,
            {
                "runs_dir": "rows.jsonl/runs",
                "train.max_steps": "many",
                "train.warmup_step": 3,
                "data.validation": "gone.jsonl",
                "report_to": ["swanlab"],
                "parallel.main_port": port,
                "parallel.interface": "nope0",
            },
        )
        env = {"TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
        result = scaleup("doctor", write_config(wrong, folder), "--json", cwd=folder, env=env)
    rows = findings(result)
    assert result.code == 2 and "Traceback" not in result.stderr
    failed = {name: f"{row['what']} -> {row['remedy']}" for name, row in rows.items() if row["level"] == "fail"}
    expected = {
        "runs_dir": "rows.jsonl is no folder",
        "train.max_steps": "valid integer",
        "train.warmup_step": "did you mean 'warmup_steps'?",
        "data.validation.0.path": "gone.jsonl' does not exist",
        "report_to": "pip install swanlab",
        "parallel.main_port": f"port {port}",
        "parallel.interface": "has no interface 'nope0'",
    }
    assert failed.keys() == expected.keys()
    for name, said in expected.items():
        assert said in failed[name], name
    assert rows[f"lock {lock}"]["level"] == "warn" and lock.exists()


def test_what_cannot_be_examined_is_exit_code_2(tmp_path: Path) -> None:
    result = scaleup("doctor", "none.yaml", cwd=tmp_path)
    assert result.code == 2 and "none.yaml: there is no such config file" in result.stderr
    result = scaleup("doctor", "--nodes", "2", "--node-rank", "2", cwd=tmp_path)
    assert result.code == 2 and "--node-rank: there is no node 2 among 2" in result.stderr


def together(commands: Sequence[Sequence[str]], folder: Path) -> list[Result]:
    """Each node's doctor, at the same time."""

    def one(command: Sequence[str]) -> Result:
        path = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            command, cwd=folder, env=path, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        return Result(done.returncode, done.stdout, done.stderr)

    with ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(one, commands))


def doctors(*arguments: str | Path) -> list[list[str]]:
    return [[*DOCTOR, *map(str, arguments), "--nodes", "2", "--node-rank", str(rank)] for rank in (0, 1)]


def test_two_agents_of_one_machine(folder: Path) -> None:
    for rank, result in enumerate(together(doctors(), folder)):
        host, other = socket.gethostname(), 1 - rank
        assert result.code == 0, result.stdout + result.stderr
        assert all(line.startswith(f"{host}: ") for line in result.stdout.splitlines())
        assert "two agents of one machine" in " ".join(result.stdout.replace(f"{host}: ", "").split())
        assert f"reach node {other}" in result.stdout and "0 failed" in result.stdout
    assert list((folder / "runs").iterdir()) == []


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[list[Host]]:
    with hosts() as found:
        yield found


def on_hosts(two_hosts: list[Host], folder: Path, *arguments: str | Path) -> list[dict[str, Row]]:
    """The findings of a doctor on each host, h1's first."""
    asked = doctors(*arguments, "--json")
    commands = [host.command(*command) for host, command in zip(two_hosts, asked, strict=True)]
    return [findings(result) for result in together(commands, folder)]


@pytest.mark.slow
def test_two_hosts_that_reach_each_other(two_hosts: list[Host], folder: Path) -> None:
    config = write_config(differing(GOOD, TWO_NODES), folder)
    for rank, rows in enumerate(on_hosts(two_hosts, folder, config)):
        other = two_hosts[1 - rank]
        assert not [row for row in rows.values() if row["level"] == "fail"]
        between = ("address", "host name", "nodes", "who is who", f"reach node {1 - rank}", f"clock of node {1 - rank}")
        assert [rows[name]["level"] for name in between] == ["ok"] * len(between)
        assert rows["python"]["host"] == two_hosts[rank].name and rows["python"]["node_rank"] == rank
        assert f"{other.name}, {other.address}" in rows[f"reach node {1 - rank}"]["what"]
        assert rows["address"]["what"] == f"to other hosts this one is {two_hosts[rank].address}, on eth0"
    assert list((folder / "runs").iterdir()) == []


@pytest.mark.slow
def test_two_hosts_of_which_one_is_unplugged(two_hosts: list[Host], folder: Path) -> None:
    two_hosts[1].unplug()
    try:
        first, second = on_hosts(two_hosts, folder)
    finally:
        two_hosts[1].plug_in()
    for said in (first["reach node 1"], second["reach node 0"]):
        assert said["level"] == "fail" and "node 0 (h1" in said["what"] and "node 1 (h2" in said["what"]
    assert first["address"]["level"] == "ok"
    assert second["address"]["level"] == "fail" and "eth0's, which is down" in second["address"]["what"]


@pytest.mark.slow
@pytest.mark.long
def test_two_hosts_with_a_wall_between_them(two_hosts: list[Host], folder: Path) -> None:
    """Packets from h1 to h2 vanish: both see it, and each names both."""
    first, second = two_hosts
    route = ["ip", "-n", first.namespace, "route"]
    subprocess.run([*route, "add", "blackhole", f"{second.address}/32"], check=True, timeout=30)
    try:
        rows = on_hosts(two_hosts, folder)
    finally:
        subprocess.run([*route, "delete", "blackhole", f"{second.address}/32"], check=True, timeout=30)
    for rank, other in ((0, second), (1, first)):
        said = rows[rank][f"reach node {1 - rank}"]
        assert said["level"] == "fail" and "firewall" in said["remedy"]
        assert f"node {rank} ({two_hosts[rank].name}, {two_hosts[rank].address}) cannot reach" in said["what"]
        assert f"({other.name}, {other.address}) at {other.address}:" in said["what"]


@pytest.mark.slow
@pytest.mark.long
def test_two_hosts_over_an_interface_that_leads_nowhere(two_hosts: list[Host], folder: Path) -> None:
    rows = on_hosts(two_hosts, folder, "--interface", "lo")
    for rank in (0, 1):
        said = rows[rank]
        assert said["address"]["level"] == said[f"reach node {1 - rank}"]["level"] == "fail"
        assert "parallel.interface" in said["address"]["remedy"]


def mounted(options: str, place: Path, command: Sequence[str]) -> list[str]:
    """What runs a command with a file system of its own in a place, which nobody else sees."""
    return [
        "unshare",
        "--mount",
        "bash",
        "-c",
        f'mount -t tmpfs -o {options} none {place} && exec "$@"',
        "sh",
        *command,
    ]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting needs root and unshare")
def test_two_nodes_that_do_not_share_the_run_folder(folder: Path) -> None:
    (folder / "runs").mkdir()
    first, second = doctors("--json", "--wait", "2")
    apart = mounted("size=100m", folder / "runs", second)
    for rank, result in enumerate(together([first, apart], folder)):
        said = findings(result)["nodes"]
        assert result.code == 1 and said["level"] == "fail"
        assert f"node {1 - rank} was not seen in {folder / 'runs'} within 2 s" in said["what"]
        assert "all nodes share" in said["remedy"]
    assert list((folder / "runs").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting needs root and unshare")
def test_a_disk_that_is_full_and_a_port_in_use(folder: Path) -> None:
    """Nothing is wrong with the config, so the exit code is not that of bad input."""
    (folder / "runs").mkdir()
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        config = write_config(differing(GOOD, {"parallel.main_port": taken.getsockname()[1]}), folder)
        (result,) = together([mounted("size=4m", folder / "runs", [*DOCTOR, str(config), "--json"])], folder)
    rows = findings(result)
    assert result.code == 1
    assert {name for name, row in rows.items() if row["level"] == "fail"} == {"runs_dir", "parallel.main_port"}
    assert "No space left on device" in rows["runs_dir"]["what"] and rows["runs_dir"]["remedy"]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounting needs root and unshare")
def test_a_run_folder_that_cannot_be_written(folder: Path) -> None:
    (folder / "runs").mkdir()
    (result,) = together([mounted("ro", folder / "runs", [*DOCTOR, "--json"])], folder)
    row = findings(result)["runs_dir"]
    assert result.code == 1 and row["level"] == "fail" and "Read-only file system" in row["what"]
