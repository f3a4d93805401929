"""One PPO run twice: left alone, and with a reward group that ten faults befall, each group followed by a new one.

    python -m tests.distributed.ppo_faults FOLDER

As the ppo stage does it in both groups; their ranks are forked from this process. FOLDER gets the runs `calm` and
`faults`, and faults.json: what was done, how the ranks ended that it was done to, and how often the policy lost a
group. Kinds, moments, victims and sizes are drawn from SCALEUP_TEST_SEED."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import torch

from scaleup.distributed.runtime import Runtime
from scaleup.models.scoring import Scorer
from scaleup.plan.groups import resized
from scaleup.plan.types import Plan
from scaleup.stages import ppo
from scaleup.train.job import Job
from tests.classifier import sharp_classifier
from tests.cli import wait_until
from tests.distributed.worlds import Gate, World
from tests.forked import be_ready_to_fork, prepared

NUM_ROLLOUTS = 16
"""More than the faults need: up to one passes before a fault, or two before one after a line."""
KINDS = [*["killed"] * 4, *["stopped"] * 3, *["restarted"] * 3]
MOMENTS = [*["line"] * 3, *["request"] * 3, *["within"] * 4]
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "restarted": signal.SIGTERM}
SECONDS = 150.0
"""For anything: the machine may be crowded."""
CONFIG: dict[str, Any] = {
    "stage": "ppo",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "max_length": 32},
    "ppo": {"num_rollouts": NUM_ROLLOUTS, "rollout_batch_size": 8, "num_ppo_epochs": 1, "max_new_tokens": 8},
    "reward": {
        "model": {"path": "classifier"},
        "label": "positive",
        "timeout_seconds": 2.5,
        "reconnect_seconds": SECONDS,
    },
    "train": {
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 2,
    },
    "parallel": {"strategy": "ddp", "num_processes": 2, "device": "cpu"},
}


@dataclass
class Fault:
    kind: str
    moment: str
    """After a line of metrics.jsonl, after a request, or within one."""
    request: int
    """Of the group's first rank that gets so many, which is also where the wait for a line begins."""
    size: int
    """Of the group that it befalls."""
    sharded: bool
    victims: list[int]
    codes: list[int] = field(default_factory=list)
    """How the ranks ended."""


def drawn(seed: int) -> list[Fault]:
    chance = random.Random(seed)
    kinds, moments = chance.sample(KINDS, len(KINDS)), chance.sample(MOMENTS, len(MOMENTS))
    sharded = chance.randrange(len(kinds))
    faults = []
    for number, (kind, moment) in enumerate(zip(kinds, moments, strict=True)):
        size = 2 if number == sharded else size_after(faults, chance)
        victims = chance.choice([list(range(size)), [chance.randrange(size)]])
        faults.append(Fault(kind, moment, chance.randint(1, 2), size, number == sharded, victims))
    return faults


def size_after(faults: list[Fault], chance: random.Random) -> int:
    """Another one for a group that is restarted, any for one that follows a lost one."""
    drawn = chance.randint(1, 2)
    return 3 - faults[-1].size if faults and faults[-1].kind == "restarted" else drawn


class Groups:
    """A prepared run, and the worlds of its groups."""

    def __init__(self, folder: Path, name: str) -> None:
        self.run, _ = prepared({**CONFIG, "name": name, "runs_dir": str(folder / "runs")})
        self.worlds: list[World] = []
        self.policy = self._begin("policy", self._stage)

    def serve(self, size: int, sharded: bool = False, watch: Callable[[], None] = lambda: None) -> World:
        """Start a reward group of that size. `watch` is called in every rank, before each request is scored."""

        def main(runtime: Runtime) -> None:
            plain = Scorer.score

            def score(scorer: Scorer, pairs: Any) -> list[float]:
                watch()
                return plain(scorer, pairs)

            Scorer.score = score  # type: ignore[method-assign]
            self._stage(runtime)

        plan = Plan.read(self.run.plan_file)
        known = plan.group("reward").model_copy(update={"strategy": "fsdp2" if sharded else "ddp"})
        groups = [resized(known, size) if group.serves else group for group in plan.groups]
        plan.model_copy(update={"groups": groups}).save(self.run.plan_file)
        return self._begin("reward", main)

    def wait(self, world: World, due: Callable[[], bool]) -> None:
        """Until something is so, or that reward group is given up."""

        def over() -> bool:
            assert self.policy.is_whole, "the policy has ended"
            return not world.is_whole or due()

        wait_until(over, SECONDS, every=0.002)

    def num_lines(self) -> int:
        file = self.run.metrics_file
        return file.read_bytes().count(b"\n") if file.is_file() else 0

    def end(self, show: bool) -> None:
        for world in self.worlds:
            world.end()
            if show:
                print(world.log())

    def _stage(self, runtime: Runtime) -> None:
        ppo.run(Job(self.run.config, Plan.read(self.run.plan_file), runtime, self.run))  # type: ignore[arg-type]

    def _begin(self, name: str, main: Callable[[Runtime], Any]) -> World:
        group = Plan.read(self.run.plan_file).group(name)
        named = f"{name}{len(self.worlds)}"
        self.worlds.append(World(self.run.path, named, group.num_processes, main, group))
        return self.worlds[-1]


def serve_until(groups: Groups, fault: Fault) -> tuple[World, Gate]:
    """A reward group at the fault's moment, and what lets it go on where it waits within a request. One that was slow
    enough to be given up before is followed by another."""
    while True:
        there, go_on = Gate(), Gate()
        world = groups.serve(fault.size, fault.sharded, at_request(fault, there, go_on))
        groups.wait(world, lambda there=there: there.wait(0))
        if fault.moment == "line":
            before = groups.num_lines()
            groups.wait(world, lambda before=before: groups.num_lines() > before)
        if world.is_whole:
            return world, go_on


def at_request(fault: Fault, there: Gate, go_on: Gate) -> Callable[[], None]:
    count = 0

    def watch() -> None:
        nonlocal count
        count += 1
        if count == fault.request:
            there.open()
            if fault.moment == "within":
                go_on.wait(SECONDS)

    return watch


def suffer(groups: Groups, faults: list[Fault]) -> None:
    """Each fault in its turn, until the policy has ended. Ranks that were stopped go on when the next fault has come,
    those of the last one when all is over."""
    befallen: list[World] = []
    for fault in faults:
        world, go_on = serve_until(groups, fault)
        for rank in fault.victims:
            os.kill(world.pids[rank], SIGNALS[fault.kind])
        go_on.open()
        if befallen:
            befallen[-1].send(signal.SIGCONT)
        befallen.append(world)
    size = size_after(faults, random.Random(0))
    while any(groups.serve(size).ended(SECONDS)):  # it was given up, being slow
        assert groups.policy.is_whole, "the policy has ended"
    assert groups.policy.results(SECONDS) == [None, None]
    for fault, world in zip(faults, befallen, strict=True):
        world.send(signal.SIGCONT)
        fault.codes = world.ended(SECONDS)


def main() -> None:
    folder = Path(sys.argv[1])
    os.chdir(folder)
    rows = [{"prompt": "ab" * (1 + number % 7)} for number in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sharp_classifier(folder / "classifier")
    be_ready_to_fork()
    torch.set_num_threads(1)
    faults = drawn(int(os.environ.get("SCALEUP_TEST_SEED", "0")))
    for name, sufferings in (("calm", []), ("faults", faults)):
        groups, is_done = Groups(folder, name), False
        try:
            suffer(groups, sufferings)
            is_done = True
        finally:
            groups.end(show=not is_done)
    lost = groups.policy.log().count("; waiting for another, ") // 2  # each rank says so
    outcome = {"faults": [asdict(fault) for fault in faults], "lost": lost, "groups": len(groups.worlds) - 1}
    Path("faults.json").write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main()
