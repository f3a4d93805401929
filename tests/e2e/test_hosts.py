"""Two hosts, each with a name, an address and a loopback of its own: a run over both is the run of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import small_runs
from tests.cli import (
    Result,
    alive,
    differing,
    folder_of,
    largest_loss_difference,
    largest_weight_difference,
    logs,
    reached,
    run,
    wait_until,
    worker_ids,
    write_config,
)
from tests.hosts import Host, hosts
from tests.small_runs import SFT, same_rollouts

pytestmark = pytest.mark.slow
TIMEOUT = 150.0
ROLLOUTS = 80
PPO = differing(small_runs.PPO, {"ppo.num_rollouts": ROLLOUTS, "train.learning_rate": 1e-4, "train.save_steps": 20})
OWN_NODES = {"reward.own_nodes": True}


@pytest.fixture(scope="module")
def two() -> Iterator[list[Host]]:
    with hosts() as made:
        yield made


@pytest.fixture(scope="module")
def alone(place: Path, pool: ThreadPoolExecutor) -> Future[Path]:
    config = differing(SFT, {"name": "alone", "train.per_device_train_batch_size": 4})
    return pool.submit(run, config, cwd=place)


def launch(config: Mapping[str, Any], on: list[Host], cwd: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """The same command on each host, with its rank."""
    file = write_config(config, cwd)
    command = [sys.executable, "-m", "scaleup.cli", "run", file, *arguments, "--node-rank"]
    return [host.start(*command, str(rank), cwd=cwd) for rank, host in enumerate(on)]


def ended(agents: list[subprocess.Popen[str]], folder: Path, codes: list[int]) -> list[Result]:
    """Of all agents. A run that does not end in time fails with every rank's log."""
    try:
        outputs = [agent.communicate(timeout=TIMEOUT) for agent in agents]
    except subprocess.TimeoutExpired:
        for agent in agents:
            agent.kill()
        raise AssertionError(f"took longer than {TIMEOUT} s\n{logs(folder)}") from None
    results = [Result(agent.returncode, *output) for agent, output in zip(agents, outputs, strict=True)]
    assert [result.code for result in results] == codes, f"{results}\n{logs(folder)}"
    assert alive(worker_ids(folder)) == []
    return results


def host_names(folder: Path) -> dict[str, str]:
    """Worker -> the host it was on."""
    return {file.stem: json.loads(file.read_text())["host"] for file in folder.glob("attempts/1/workers/*.json")}


def test_ddp(two: list[Host], place: Path, alone: Future[Path]) -> None:
    config = differing(SFT, {"name": "ddp", "parallel": {"num_processes": 2, "num_nodes": 2}})
    folder = folder_of(config, place)
    ended(launch(config, two, place), folder, [0, 0])
    assert host_names(folder) == {"policy-rank0": "h1", "policy-rank1": "h2"}
    assert largest_loss_difference(alone.result(), folder) <= 1e-5
    assert largest_weight_difference(alone.result(), folder) <= 1e-5


def test_names_that_stand_for_a_loopback(place: Path, alone: Future[Path]) -> None:
    """As Debian writes them: each host by its own name would listen where no other one comes."""
    config = differing(SFT, {"name": "loopback", "parallel": {"num_processes": 2, "num_nodes": 2, "strategy": "fsdp2"}})
    folder = folder_of(config, place)
    with hosts(("d1", "d2"), resolves_to_loopback=True) as debian:
        ended(launch(config, debian, place), folder, [0, 0])
    assert largest_weight_difference(alone.result(), folder) <= 1e-5


def test_ppo_whose_reward_group_dies_on_its_own_node(two: list[Host], place: Path, colocated: Future[Path]) -> None:
    config = differing(PPO, {"name": "ppo", **OWN_NODES})
    folder = folder_of(config, place)
    agents = launch(config, two, place)
    wait_until(lambda: reached(2)(folder) or any(agent.poll() is not None for agent in agents))
    assert host_names(folder) == {"policy-rank0": "h1", "reward-rank0": "h2"}, logs(folder)
    assert json.loads((folder / "bridge.json").read_text())["address"] == two[0].address
    os.kill(json.loads((folder / "attempts/1/workers/reward-rank0.json").read_text())["pid"], signal.SIGKILL)
    results = ended(agents, folder, [0, 0])
    assert "reward-rank0 was killed by signal 9; restart 1 of 3 of group reward alone" in results[1].stdout
    same_rollouts(folder, colocated.result(), ROLLOUTS)


@pytest.mark.long
def test_a_signal_to_the_rewards_node_stops_all(two: list[Host], place: Path, colocated: Future[Path]) -> None:
    """It serves until the policy has saved; and the run goes on as if nothing had been."""
    config = differing(PPO, {"name": "signalled", **OWN_NODES})
    folder = folder_of(config, place)
    agents = launch(config, two, place)
    wait_until(lambda: reached(2)(folder) or any(agent.poll() is not None for agent in agents))
    agents[1].send_signal(signal.SIGTERM)
    ended(agents, folder, [75, 75])
    assert (folder / "resumable.json").is_file()
    ended(launch(config, two, place, "--resume"), folder, [0, 0])
    same_rollouts(folder, colocated.result(), ROLLOUTS)


def test_a_node_that_is_gone_ends_the_others(two: list[Host], place: Path) -> None:
    """The first one says who it was."""
    config = differing(SFT, {"name": "gone", "train.max_steps": 100_000})
    config |= {"parallel": {"num_processes": 2, "num_nodes": 2}}
    folder = folder_of(config, place)
    agents = launch(config, two, place)
    wait_until(lambda: reached(3)(folder) or any(agent.poll() is not None for agent in agents))
    agents[1].kill()
    results = ended(agents, folder, [1, -signal.SIGKILL])
    assert results[0].stderr.startswith("error: node 1: its agent gave no sign of life for 60 s\n")
    assert "continue with --resume" in results[0].stderr  # its worker heard of that from the kernel, and all saved


def test_a_worker_that_hangs_on_the_second_node_is_named(two: list[Host], place: Path) -> None:
    config = differing(SFT, {"name": "hangs", "train.max_steps": 100_000})
    config |= {"parallel": {"num_processes": 2, "num_nodes": 2, "heartbeat_timeout_seconds": 10}}
    folder = folder_of(config, place)
    agents = launch(config, two, place)
    wait_until(lambda: reached(3)(folder) or any(agent.poll() is not None for agent in agents))
    os.kill(json.loads((folder / "attempts/1/workers/policy-rank1.json").read_text())["pid"], signal.SIGSTOP)
    for result in ended(agents, folder, [1, 1]):
        assert result.stderr.startswith("error: policy-rank1 on host h2 hangs: no sign of life for 10 s, last seen in ")
