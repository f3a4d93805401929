"""Several process groups at once, forked from the test: each rank joins its group through Runtime, as workers do."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from scaleup.artifacts.bridge_file import free_port
from scaleup.distributed.runtime import Runtime
from scaleup.distributed.signals import StopFlag, stop_with_parent
from scaleup.plan.types import GroupPlan
from tests.forked import environment


class Gate:
    """Opened once, by any process, for all that wait."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def open(self) -> None:
        os.write(self._write, b".")

    def wait(self, seconds: float = 40) -> bool:
        return bool(select.select([self._read], [], [], seconds)[0])


class World:
    """A group's ranks, each running `main(runtime)`."""

    def __init__(
        self, folder: Path, name: str, size: int, main: Callable[[Runtime], Any], group: GroupPlan | None = None
    ) -> None:
        """`group`: where it is more than `size` ranks that hold all."""
        self.name = name
        self._outs = [folder / f"{name}-{rank}.json" for rank in range(size)]
        self._codes: dict[int, int] = {}
        group, port = group or group_plan(name, size), free_port("port")
        self.pids = [self._fork(group, rank, port, main) for rank in range(size)]
        self._handles = [os.pidfd_open(pid) for pid in self.pids]

    def ended(self, seconds: float = 40) -> list[int]:
        """Exit codes of the ranks, all of which must end in this time; minus the signal for a killed one."""
        deadline = time.monotonic() + seconds
        for rank, handle in enumerate(self._handles):
            if rank not in self._codes:
                left = max(0.0, deadline - time.monotonic())
                if not select.select([handle], [], [], left)[0]:
                    raise AssertionError(f"{self.name}-{rank} has not ended within {seconds} s\n{self.log()}")
                self._codes[rank] = os.waitstatus_to_exitcode(os.waitpid(self.pids[rank], 0)[1])
        return [self._codes[rank] for rank in range(len(self.pids))]

    @property
    def is_whole(self) -> bool:
        """Whether no rank has ended."""
        return not any(select.select([handle], [], [], 0)[0] for handle in self._handles)

    def results(self, seconds: float = 40) -> list[Any]:
        """What `main` returned on each rank."""
        codes = self.ended(seconds)
        assert not any(codes), f"{self.name} ended with {codes}\n{self.log()}"
        return [json.loads(out.read_text()) for out in self._outs]

    def errors(self, seconds: float = 40) -> list[str]:
        """What each rank raised, its type first."""
        codes = self.ended(seconds)
        assert all(code == 3 for code in codes), f"{self.name} ended with {codes}\n{self.log()}"
        return [json.loads(out.read_text()) for out in self._outs]

    def send(self, number: signal.Signals) -> None:
        for pid in self.pids:
            os.kill(pid, number)

    def log(self) -> str:
        return "\n".join(f"== {out.stem}\n{out.with_suffix('.log').read_text()}" for out in self._outs)

    def end(self) -> None:
        """Whatever is left is killed."""
        for rank, pid in enumerate(self.pids):
            if rank not in self._codes:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os.close(self._handles[rank])

    def _fork(self, group: GroupPlan, rank: int, port: int, main: Callable[[Runtime], Any]) -> int:
        if child := os.fork():
            return child
        out, code = self._outs[rank], 1
        log = out.with_suffix(".log").open("w", buffering=1)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log  # pytest's own would swallow it
        stop_with_parent()
        try:
            AcceleratorState._reset_state(
                reset_partial_state=True
            )  # another test's, of the process we were forked from
            os.environ.update(environment(group, rank, port))
            runtime = Runtime.start(group, 60, out.parent, stop=StopFlag().install())
            try:
                said, code = main(runtime), 0
            except Exception as error:
                traceback.print_exc()
                said, code = f"{type(error).__name__}: {error}", 3
            out.write_text(json.dumps(said))
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def group_plan(name: str, size: int) -> GroupPlan:
    alone = size == 1
    return GroupPlan(
        name=name,
        num_processes=size,
        num_nodes=1,
        device="cpu",
        backend="gloo",
        strategy="single" if alone else "ddp",
        why="a test wants it",
        distributed_type="NO" if alone else "MULTI_CPU",
        engine="none" if alone else "DistributedDataParallel",
        mixed_precision="no",
        threads_per_process=1,
        main_address=None,
        main_port=None,
    )
