"""Launch, meet, watch, restart and stop a run of 128 nodes with 8 ranks each on this machine, and count what its shared
folder sees of it.

Run it from the repository's root, after `make setup`; it needs no network and no GPU, and as root gives each node its
own process table and host name:

    .venv/bin/python benchmarks/control_plane.py
    .venv/bin/python benchmarks/control_plane.py --steady --json OUT        until it has been counted, and no further
    SCALEUP_TREE=../before .venv/bin/python benchmarks/control_plane.py     # the package of another working tree

What is real: one process a node, which is `lead_run` or `join_run` as `scaleup run` calls it, with all that it starts,
reads, writes and waits for; and the heartbeat of each rank. What stands in: `accelerate launch` is a small process that
forks the node's ranks, and a rank is one that has a heartbeat, enters a collective every second while all others do,
and ends when the run is told to stop. One that survives another's death waits until its agent ends it.

An *operation* on the shared folder is a file that is read, one that is written aside and renamed, a folder that is
listed, or a path whose state is asked for. Each process counts its own: an audit hook, and a wrapper of `os.stat`."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from control_plane_stand_ins import (
    ATTEMPT,
    DIES,
    LED,
    READS,
    SPEED,
    STUCK,
    STUCK_AT,
    WRITES,
    Shared,
    be_agent,
    fork_agent,
)

NODES, RANKS = 128, 8
PROGRESS_TIMEOUT = 20


def plan_of(run: Path, nodes: int, ranks: int, progress_timeout: float) -> Any:
    """A plan of which the launcher reads the group alone."""
    from scaleup.plan.facts import ModelFacts
    from scaleup.plan.types import BatchPlan, GroupPlan, Plan

    group = GroupPlan.model_construct(
        name="policy",
        num_processes=nodes * ranks,
        num_nodes=nodes,
        device="cpu",
        backend="gloo",
        strategy="ddp",
        why="",
        distributed_type="MULTI_CPU",
        engine="DistributedDataParallel",
        mixed_precision="no",
        threads_per_process=1,
        main_address="127.0.0.1",
        main_port=1,
        progress_timeout_seconds=progress_timeout,
    )
    facts = ModelFacts(
        location="/m",
        task="causal_lm",
        model_type="llama",
        architecture="LlamaForCausalLM",
        num_parameters=1,
        num_trainable_parameters=1,
        tensors=(),
        largest_block=1,
        vocab_size=1,
        tokenizer_size=1,
        max_positions=1,
        pad_token="p",
        eos_token="e",
        has_chat_template=False,
    )
    batch = BatchPlan(micro_batch=1, accumulation=1, global_batch=nodes * ranks, num_steps=1, num_train_rows=1)
    known = {"stage": "sft", "name": "x", "run_folder": str(run), "groups": [group]}
    return Plan(**known, model=facts, batch=batch, memory=[], notes=[])


class Simulation:
    """Holds a run of stand-ins on this machine, and what is measured of it."""

    def __init__(self, place: Path, nodes: int, ranks: int, speed: float) -> None:
        import scaleup.launcher.restarts  # noqa: F401  once, not in each agent
        from scaleup.artifacts.run_folder import RunFolder

        self.place, self.nodes, self.ranks, self.speed = place, nodes, ranks, speed
        (place / "tmp").mkdir()
        self.run = RunFolder(place / "runs/x")
        self.run.path.mkdir(parents=True)
        self.timeout = PROGRESS_TIMEOUT / speed
        plan = plan_of(self.run.path, nodes, ranks, self.timeout)
        plan.save(self.run.plan_file)
        file = place / "shared"
        self.shared = Shared(file, nodes * (ranks + 1))
        self.shared[SPEED] = speed
        self.began = time.monotonic()
        self.agents = [
            fork_agent(lambda node=node: be_agent(self.shared, file, self.run, plan, node, ranks), node)  # type: ignore[misc]
            for node in range(nodes)
        ]

    def operations(self) -> dict[str, int]:
        """Of agents and of ranks, until now."""
        agents = range(0, self.nodes * (self.ranks + 1), self.ranks + 1)
        all_of_them = range(self.nodes * (self.ranks + 1))
        of_agents = {kind: self.shared.total(kind, agents) for kind in (READS, WRITES)}  # type: ignore[arg-type]
        total = {kind: self.shared.total(kind, all_of_them) for kind in (READS, WRITES)}
        return {
            "read by agents": of_agents[READS],
            "written by agents": of_agents[WRITES],
            "by ranks": sum(total.values()) - sum(of_agents.values()),
        }

    def until(self, condition: Callable[[], bool], limit: float = 300.0) -> float:
        """Wait until something holds; return the seconds that took."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > limit:
                raise TimeoutError(f"for {limit:.0f} s")
            time.sleep(0.02)
        return time.monotonic() - began

    def said(self, node: int) -> str:
        file = self.run.path.parent / f"node{node}.txt"
        return file.read_text() if file.exists() else ""

    def failure(self) -> str:
        """Return what node 0 has posted of its part: what it has found, once its own ranks have ended."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            newest = max((self.run.path / "attempts").iterdir(), key=lambda attempt: int(attempt.name))
            return str(json.loads((newest / "nodes/0.json").read_text())["part"]["failed"])
        return ""

    def is_up(self, attempt: int) -> bool:
        rows = (self.shared.row(n * (self.ranks + 1) + 1 + r) for n in range(self.nodes) for r in range(self.ranks))
        return all(self.shared[row + ATTEMPT] == attempt for row in rows)

    def stand_still(self, rank: int) -> None:
        self.shared[STUCK_AT] = int(time.monotonic() * self.speed)
        self.shared[STUCK] = rank + 1

    def die(self, rank: int) -> None:
        """The others stand in a collective with it."""
        self.stand_still(rank)
        self.shared[DIES] = rank + 1

    def go_on(self) -> None:
        self.shared[STUCK] = self.shared[DIES] = 0

    def end(self) -> list[int]:
        """Return the exit codes of all agents, once all have ended."""
        return [os.waitstatus_to_exitcode(os.waitpid(agent, 0)[1]) for agent in self.agents]

    def kill(self) -> None:
        """End whatever is left."""
        for agent in self.agents:
            with suppress(ProcessLookupError):
                os.kill(agent, signal.SIGKILL)


LAST_STEADY = "operations a node in 3 s"


def simulated(
    place: Path, nodes: int, ranks: int, speed: float = 1.0, last: str = "", steady_seconds: float = 60.0
) -> dict[str, Any]:
    """Take a run of stand-ins through all that may happen, or until `last` is measured. Return what was measured;
    seconds are those of a clock."""
    simulation, found = Simulation(place, nodes, ranks, speed), {}
    try:
        for name, value in measured(simulation, steady_seconds / speed):
            found[name] = value
            if name == last:
                os.kill(simulation.agents[0], signal.SIGTERM)
                simulation.end()
                break
    except TimeoutError as error:
        found["did not go on"] = str(error)
    finally:
        simulation.kill()
    return found


def measured(simulation: Simulation, steady_seconds: float) -> Iterator[tuple[str, Any]]:
    nodes, shared, behind = simulation.nodes, simulation.shared, simulation.nodes * simulation.ranks // 2 + 1
    simulation.until(lambda: shared[LED] > 0)
    yield "seconds to meet", shared[LED] - simulation.began
    simulation.until(lambda: simulation.is_up(1))
    yield "seconds until all ranks are up", time.monotonic() - simulation.began
    yield "operations until then", sum(simulation.operations().values())
    time.sleep(35 / simulation.speed)  # until nobody hurries any more
    before, began = simulation.operations(), time.monotonic()
    time.sleep(steady_seconds)
    seconds = time.monotonic() - began
    counted = {kind: number - before[kind] for kind, number in simulation.operations().items()}
    yield "steady seconds", seconds
    yield "steady operations", counted
    yield "operations a second", sum(counted.values()) / seconds
    yield "operations a node in 3 s", sum(counted.values()) / seconds / nodes * 3 / simulation.speed
    simulation.stand_still(behind)
    took = simulation.until(lambda: "hangs" in simulation.failure())
    yield "seconds to find a hung rank, beyond its limit", took - simulation.timeout
    yield "sentence", simulation.failure()
    yield "seconds from there until all have ended", simulation.until(lambda: "restart 1" in simulation.said(0))
    simulation.go_on()
    yield "seconds from there until all ranks are up again", simulation.until(lambda: simulation.is_up(2))
    simulation.die(behind)
    yield "seconds from a death to the next attempt", simulation.until(lambda: "restart 2" in simulation.said(0))
    simulation.go_on()
    yield "seconds from there until all ranks are up once more", simulation.until(lambda: simulation.is_up(3))
    time.sleep(35 / simulation.speed)
    before, began = simulation.operations(), time.monotonic()
    os.kill(simulation.agents[nodes // 2], signal.SIGTERM)
    codes = simulation.end()
    yield "seconds from a signal to one node until all have ended", time.monotonic() - began
    yield "operations to stop", sum(simulation.operations().values()) - sum(before.values())
    yield "exit codes", sorted(set(codes))
    yield "folders left", len(list(simulation.place.glob("tmp/*")))


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--ranks", type=int, default=RANKS)
    parser.add_argument("--speed", type=float, default=1.0, help="how many times faster the agents' time passes")
    parser.add_argument("--steady", action="store_true", help="nothing happens in the run")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    last = LAST_STEADY if arguments.steady else ""
    with tempfile.TemporaryDirectory() as place:
        found = simulated(Path(place), arguments.nodes, arguments.ranks, arguments.speed, last)
    print(json.dumps(found, indent=2))
    if arguments.json:
        row = {"case": f"{arguments.nodes} nodes, {arguments.nodes * arguments.ranks} ranks", "allowed": 1.0}
        arguments.json.write_text(json.dumps([row | {"counted": found[LAST_STEADY]}]), encoding="utf-8")


if __name__ == "__main__":
    main()
