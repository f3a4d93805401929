"""One run twice: left alone, and with reward groups that ten faults befall, each group followed by a new one.

    python -m tests.distributed.ppo_faults FOLDER STAGE

STAGE is ppo, which has one reward group, or rl, which has two here. As the stage does it in all groups; their ranks are
forked from this process. FOLDER gets the runs `calm` and `faults`, and faults.json: what was done, how the ranks ended
that it was done to, and how often the policy lost a group. Kinds, moments, groups, victims and sizes are drawn from
SCALEUP_TEST_SEED."""

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
from scaleup.stages import rl
from scaleup.train.job import Job
from tests.classifier import sharp_classifier
from tests.cli import wait_until
from tests.distributed.worlds import Gate, World
from tests.forked import be_ready_to_fork, prepared

NUM_ROLLOUTS = 16
"""More than the faults need: up to one passes before a fault, or two before one after a line. With two groups more pass
while one of them is looked after."""
KINDS = [*["killed"] * 4, *["stopped"] * 3, *["restarted"] * 3]
MOMENTS = [*["line"] * 3, *["request"] * 3, *["within"] * 4]
SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "restarted": signal.SIGTERM}
SECONDS = 150.0
"""For anything: the machine may be crowded."""
REWARD: dict[str, Any] = {
    "model": {"path": "classifier"},
    "label": "positive",
    "timeout_seconds": 2.5,
    "reconnect_seconds": SECONDS,
}
STAGES: dict[str, dict[str, Any]] = {
    "ppo": {
        "ppo": {"num_rollouts": NUM_ROLLOUTS, "rollout_batch_size": 8, "num_ppo_epochs": 1, "max_new_tokens": 8},
        "reward": REWARD,
    },
    "rl": {
        "algorithm": {"type": "rloo", "num_generations": 2},
        "rollouts": {"num_rollouts": 3 * NUM_ROLLOUTS, "batch_size": 8, "max_new_tokens": 8},
        "rewards": [
            REWARD | {"name": "good"},
            REWARD | {"name": "long", "weight": 0.5, "template": "{response}"},
        ],
    },
}
CONFIG: dict[str, Any] = {
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "max_length": 32},
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
    group: str
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


def drawn(seed: int, groups: list[str]) -> list[Fault]:
    chance = random.Random(seed)
    kinds, moments = chance.sample(KINDS, len(KINDS)), chance.sample(MOMENTS, len(MOMENTS))
    sharded = chance.randrange(len(kinds))
    faults = []
    for number, (kind, moment) in enumerate(zip(kinds, moments, strict=True)):
        group = groups[number % len(groups)]
        size = 2 if number == sharded else size_after([each for each in faults if each.group == group], chance)
        victims = chance.choice([list(range(size)), [chance.randrange(size)]])
        faults.append(Fault(kind, group, moment, chance.randint(1, 2), size, number == sharded, victims))
    return faults


def size_after(faults: list[Fault], chance: random.Random) -> int:
    """Another one for a group that is restarted, any for one that follows a lost one. `faults` are its own so far."""
    drawn = chance.randint(1, 2)
    return 3 - faults[-1].size if faults and faults[-1].kind == "restarted" else drawn


class Groups:
    """A prepared run, and the worlds of its groups."""

    def __init__(self, folder: Path, name: str, stage: str) -> None:
        changes = {"stage": stage, **STAGES[stage], "name": name, "runs_dir": str(folder / "runs")}
        self.run, plan = prepared({**CONFIG, **changes})
        self.names = [group.name for group in plan.groups if group.serves]
        self.worlds: list[World] = []
        self.policy = self._begin("policy", self._stage)

    def serve(self, name: str, size: int, sharded: bool = False, watch: Callable[[], None] = lambda: None) -> World:
        """Start that reward group, of that size. `watch` is called in every rank, before each request is scored."""

        def main(runtime: Runtime) -> None:
            plain = Scorer.score

            def score(scorer: Scorer, pairs: Any) -> list[float]:
                watch()
                return plain(scorer, pairs)

            Scorer.score = score  # type: ignore[method-assign]
            self._stage(runtime)

        plan = Plan.read(self.run.plan_file)
        known = plan.group(name).model_copy(update={"strategy": "fsdp2" if sharded else "ddp"})
        groups = [resized(known, size) if group.name == name else group for group in plan.groups]
        plan.model_copy(update={"groups": groups}).save(self.run.plan_file)
        return self._begin(name, main)

    def num_lines(self) -> int:
        file = self.run.metrics_file
        return file.read_bytes().count(b"\n") if file.is_file() else 0

    def end(self, show: bool) -> None:
        for world in self.worlds:
            world.end()
            if show:
                print(world.log())

    def _stage(self, runtime: Runtime) -> None:
        rl.run(Job(self.run.config, Plan.read(self.run.plan_file), runtime, self.run))  # type: ignore[arg-type]

    def _begin(self, name: str, main: Callable[[Runtime], Any]) -> World:
        group = Plan.read(self.run.plan_file).group(name)
        named = f"{name}{len(self.worlds)}"
        self.worlds.append(World(self.run.path, named, group.num_processes, main, group))
        return self.worlds[-1]


@dataclass
class Armed:
    """Is a reward group that a fault is going to befall."""

    groups: Groups
    fault: Fault
    there: Gate = field(default_factory=Gate)
    go_on: Gate = field(default_factory=Gate)
    """Lets it go on where it waits within a request."""
    line: int | None = None
    """Counts the lines of metrics when its request came."""

    def __post_init__(self) -> None:
        watch = at_request(self.fault, self.there, self.go_on)
        self.world = self.groups.serve(self.fault.group, self.fault.size, self.fault.sharded, watch)

    def is_due(self) -> bool:
        """Whether the fault's moment has come, or the group was slow and has been given up."""
        if not self.world.is_whole:
            return True
        if self.line is None and self.there.wait(0):
            self.line = self.groups.num_lines()
        return self.line is not None and (self.fault.moment != "line" or self.groups.num_lines() > self.line)


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
    """All faults, each when its moment comes to its group, until the policy has ended. Ranks that were stopped go on
    when the next fault has come to their group, or when all is over."""
    left = {name: [fault for fault in faults if fault.group == name] for name in groups.names}
    armed = {name: Armed(groups, own[0]) for name, own in left.items() if own}
    last = {name: groups.serve(name, 1) for name, own in left.items() if not own}
    befallen: list[tuple[Fault, World]] = []
    while armed:
        wait_until(lambda: any_due(groups, armed), SECONDS, every=0.002)
        for name, each in [(name, each) for name, each in armed.items() if each.is_due()]:
            if not each.world.is_whole:  # it is followed by another to which the same will be done
                armed[name] = Armed(groups, each.fault)
                continue
            for rank in each.fault.victims:
                os.kill(each.world.pids[rank], SIGNALS[each.fault.kind])
            each.go_on.open()
            for before in (world for fault, world in befallen if fault.group == name):
                before.send(signal.SIGCONT)  # another group has had its place for a while
            befallen.append((each.fault, each.world))
            done = left[name].pop(0)
            if left[name]:
                armed[name] = Armed(groups, left[name][0])
            else:
                del armed[name]
                last[name] = groups.serve(name, size_after([done], random.Random(0)))
    for name, world in last.items():
        while any(world.ended(SECONDS)):  # it was given up, being slow
            assert groups.policy.is_whole, "the policy has ended"
            world = groups.serve(name, 1)
    assert groups.policy.results(SECONDS) == [None, None]
    for fault, world in befallen:
        world.send(signal.SIGCONT)
        fault.codes = world.ended(SECONDS)


def any_due(groups: Groups, armed: dict[str, Armed]) -> bool:
    assert groups.policy.is_whole, "the policy has ended"
    due = [each.is_due() for each in armed.values()]  # each looks at its own request
    return any(due)


def main() -> None:
    folder, stage = Path(sys.argv[1]), sys.argv[2]
    os.chdir(folder)
    rows = [{"prompt": "ab" * (1 + number % 7)} for number in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sharp_classifier(folder / "classifier")
    be_ready_to_fork()
    torch.set_num_threads(1)
    seed, faults = int(os.environ.get("SCALEUP_TEST_SEED", "0")), []
    for name in ("calm", "faults"):
        groups, is_done = Groups(folder, name, stage), False
        try:
            faults = drawn(seed, groups.names) if name == "faults" else []
            suffer(groups, faults)
            is_done = True
        finally:
            groups.end(show=not is_done)
    lost = groups.policy.log().count("; waiting for another, ") // 2  # each rank says so
    outcome = {
        "faults": [asdict(fault) for fault in faults],
        "lost": lost,
        "replaced": len(groups.worlds) - 1 - len(groups.names),
    }
    Path("faults.json").write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main()
