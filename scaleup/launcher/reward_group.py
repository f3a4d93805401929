"""This module keeps what an agent knows of a group that serves the one that leads, and decides when it is started again
alone."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field

from scaleup.artifacts.local_folder import LocalFolder
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.errors import ScaleupError
from scaleup.launcher.ending import group_ended, killed_worker, restart_delay
from scaleup.launcher.prepare import write_launch_file
from scaleup.plan.types import GroupPlan, Plan

LOOK_SECONDS = 15.0
"""Is how many seconds pass between two looks at the run folder: for another size, and for a policy without answers."""
PATIENT_SECONDS = 8.0
"""Counts the seconds before a group without answers is ended. One that died shows it by itself in so many; a group that
hangs does not."""
END_SECONDS = 5.0
"""Counts the seconds that a group that was told to end may take: it has nothing to save."""


@dataclass
class Service:
    """Stands for one such group within an attempt."""

    run: RunFolder
    attempt: Attempt
    local: LocalFolder
    name: str
    starts: int = 0
    restarts: int = 0
    """Counts the restarts after a death, of which `max_restarts` are allowed; not those to another size."""
    failed: str = ""
    """Says why it is not started again."""
    killed: str = ""
    ended: bool = False
    """Tells that it ended as it should: the group that leads needs it no more."""
    hung: str = ""
    """Says which of its workers gave no sign of life, when it was told to end."""
    told_at: float | None = None
    """Is the monotonic time in seconds when it was told to end, to be started again: it hangs, or is to have another
    size."""
    _group: GroupPlan | None = None
    _start_at: float | None = None
    _lost_at: float | None = None
    """Is the monotonic time in seconds when the policy was first seen without answers."""
    _next_look: float = field(default=0.0, repr=False)

    def group_to_start(self) -> GroupPlan:
        """Return the group as the plan has it now, after writing its launch file."""
        self._group = self._planned()
        self.run.lost_file(self.name).unlink(missing_ok=True)
        write_launch_file(self.run, self._group)
        self.starts += 1
        self.told_at = self._start_at = None
        self.hung, self._lost_at = "", None
        return self._group

    def must_end(self, hung: str = "") -> bool:
        """Return whether a worker of it hangs (the sentence), the policy gets no answers from it, or the plan has
        another size for it than when it was started. Looks at the run folder every `LOOK_SECONDS`."""
        now, self.hung = time.monotonic(), hung
        if self.told_at is not None or (now < self._next_look and not hung):
            return False
        is_lost = self.run.lost_file(self.name).exists()
        self._lost_at = None if not is_lost else now if self._lost_at is None else self._lost_at
        self._next_look = now + (PATIENT_SECONDS if is_lost else LOOK_SECONDS)
        has_lasted = self._lost_at is not None and now - self._lost_at >= PATIENT_SECONDS
        return bool(hung) or has_lasted or self._planned() != self._group

    def tell(self) -> None:
        self.told_at = time.monotonic()

    def may_start(self) -> bool:
        return self._start_at is not None and time.monotonic() >= self._start_at

    def note_end(self, launcher: subprocess.Popen[bytes], node_rank: int) -> str:
        """Decide what comes next after its launcher has ended, once. Return a line for the user, or nothing."""
        if self._start_at is not None or self.ended or self.failed:
            return ""
        planned, code = self._planned(), launcher.returncode
        if planned != self._group:
            self._start_at = time.monotonic()
            return f"group {self.name} starts again with {planned.num_processes} process(es)"
        if code == 0 and self.told_at is None:
            self.ended = True
            return ""
        self.killed = self.hung or killed_worker(self.attempt, self.name, node_rank, self.local, self.starts - 1)
        hung = self.told_at is not None
        how = f"group {self.name} gave no answers"
        if not hung:
            how = group_ended(self.attempt, self.name, node_rank, code, self.starts - 1)
        if self.attempt.has_mistake(self.name) or self.restarts >= planned.max_restarts:
            self.failed = how + (f", after {self.restarts} restart(s)" if self.restarts else "")
            return ""
        self.restarts += 1
        self._start_at = time.monotonic() + restart_delay(self.restarts)
        return f"{self.killed or how}; restart {self.restarts} of {planned.max_restarts} of group {self.name} alone"

    def _planned(self) -> GroupPlan:
        """Returns the group's plan. One that cannot be read has not changed: a run does not end for that.

        Raises OSError where it never could be read."""
        try:
            return Plan.read(self.run.plan_file).group(self.name)
        except (OSError, ScaleupError) as error:
            if self._group is None:
                raise OSError(str(error)) from error
            return self._group
