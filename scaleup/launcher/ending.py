"""The parts of all nodes go in; how an attempt ended, whether the run is started again, and what the user is told come
out.

Exit codes: 0 finished, 2 a mistake of the user's, 75 stopped by a signal, to be resumed (EX_TEMPFAIL), 1 others."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from scaleup.artifacts.checkpoints import latest_checkpoint
from scaleup.artifacts.files import write_problem
from scaleup.artifacts.local_folder import LocalFolder
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.children import TRACEBACK
from scaleup.errors import Problem, ScaleupError

RESUMABLE = 75
FIRST_DELAY_SECONDS = 1.0
LONGEST_DELAY_SECONDS = 30.0
LONGEST = 300
"""Characters of a log that are quoted in a sentence."""

# What torchrun, and accelerate for a single process, write into the launcher's log
TORCHRUN_FAILURE = re.compile(
    r"time +: (\S+)\n +host +: .*\n +rank +: (\d+) \(local_rank: \d+\)\n +exitcode +: (-?\d+) \(pid: \d+\)"
)
TORCHRUN_DEATH = re.compile(r"failed \(exitcode: -(\d+)\) local_rank: \d+ \(pid: (\d+)\)")  # comes earlier, names one
SINGLE_DEATH = re.compile(r"died with <Signals\.\w+: (\d+)>")
CHAINED = re.compile(r"\s+(?:During handling of|The above exception was the direct cause of) .*\n\s*\n")
NOT_STARTED = re.compile(r"^(?:\S*python\S*|Fatal Python error|\S+\.py: error): (?P<what>.*)", re.MULTILINE)
"""What Python itself says where not even a traceback comes."""
OF_TORCHRUN = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError"
AT_ONCE_SECONDS = 5.0
"""Bounds the seconds after a first death within which others are their own. Later deaths are torchrun's doing: it gives
the other workers 30 s to end, then kills them."""
OWN_DEATHS = {signal.SIGABRT, signal.SIGTERM}
"""Names signals that a worker gets because of something else, which says more."""


@dataclass(frozen=True)
class Part:
    """Tells how one node's part of an attempt ended. `failed` and `killed` are sentences, empty when there is none."""

    failed: str = ""
    killed: str = ""
    signalled: bool = False


@dataclass(frozen=True)
class Ending:
    """Tells how an attempt ended on all nodes together; `what` is the cause of a failure."""

    kind: Literal["finished", "stopped", "refused", "failed"]
    what: str = ""
    final: bool = False
    """Tells that starting again would not help."""
    error: dict[str, Any] | None = field(default=None, compare=False)
    """Is what the first worker that failed has recorded. It travels with the ending: node 0 alone reads what all ranks
    have recorded."""


def ending_of(run: RunFolder, attempt: Attempt, parts: Sequence[Part]) -> Ending:
    """Decide how an attempt ended, from the parts of all nodes and the errors that workers recorded."""
    failed = [part.failed for part in parts if part.failed]
    signalled = any(part.signalled for part in parts)
    error = attempt.first_error()
    if run.resumable_file.is_file() and (signalled or not failed):  # else a group saved because another one had died
        return Ending("stopped")
    if error and error["problems"]:
        return Ending("refused", error=error)
    if run.manifest_file.is_file() or not (failed or signalled):
        return Ending("finished")
    if signalled and not error:
        return Ending("stopped")  # before there was anything to save
    killed = [part.killed for part in parts if part.killed]  # what the survivors felt comes after
    if not killed and (why := write_problem(run.path)):  # then no worker could say what it ended with
        return Ending("failed", f"nothing can be written to {run.path}: {why}", final=True)
    what = killed[0] if killed else _sentence(error) if error else failed[0]
    return Ending("failed", what, final=signalled, error=error)


def _sentence(error: dict[str, str]) -> str:
    return f"{error['rank']} failed: {(error['error'].strip().splitlines() or ['?'])[0]}"


def may_restart(ending: Ending, restarts: int, max_restarts: int) -> bool:
    """Return whether to start again: only a run whose worker died, not a user's mistake, which would come again, nor
    one that somebody stopped."""
    return ending.kind == "failed" and not ending.final and restarts < max_restarts


def restart_delay(restart: int) -> float:
    """Return the seconds before the n-th restart: what killed a worker may need a moment to pass."""
    return min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(restart - 1, 10))


def restart_line(run: RunFolder, ending: Ending, restart: int, max_restarts: int) -> str:
    """Return the line that says why the run starts again, and from where."""
    latest = latest_checkpoint(run.checkpoints)
    start = f"step {latest.step}" if latest else "the start"
    return f"{ending.what}; restart {restart} of {max_restarts} from {start}"


def killed_worker(attempt: Attempt, group: str, node_rank: int, local: LocalFolder, restart: int = 0) -> str:
    """Return which worker of this node was killed, and how, as far as its launcher's log tells; else nothing."""
    try:
        log = attempt.launcher_log(group, node_rank, restart).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    failures = [(datetime.fromisoformat(at.replace("_", "T")), *rest) for at, *rest in TORCHRUN_FAILURE.findall(log)]
    first = min((failure[0] for failure in failures), default=datetime.min)
    deaths = [(rank, -int(code)) for at, rank, code in failures if (at - first).total_seconds() <= AT_ONCE_SECONDS]
    names = [(f"{group}-rank{rank}", number) for rank, number in deaths if number > 0]
    names += [(f"{group}-rank0", int(number)) for number in SINGLE_DEATH.findall(log)]
    if not failures:
        known = {pid: name for name, pid in local.pids().items()}
        named = [(known.get(int(pid)), pid, number) for number, pid in TORCHRUN_DEATH.findall(log)]
        names += [(name or f"process {pid} of node {node_rank}", int(number)) for name, pid, number in named]
    killed = [f"{name} was killed by signal {number}" for name, number in names if number not in OWN_DEATHS]
    return next(iter(killed), "")


def group_ended(attempt: Attempt, group: str, node_rank: int, code: int, restart: int = 0) -> str:
    """Returns the sentence for a launcher that failed, with what its log says of why: a worker that got as far as that
    has recorded its error, and its sentence comes before this one."""
    log = attempt.launcher_log(group, node_rank, restart)
    try:
        why = first_failure(log.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        why = ""
    return f"group {group} ended with exit code {code}" + (f": {why} ({log.name})" if why else "")


def first_failure(log: str) -> str:
    """Returns the exception of the first traceback in a launcher's log, the last one of its chain; else what Python
    says where there is no traceback, else nothing."""
    log = re.sub(r"^\[rank\d+\]: ?", "", log, flags=re.MULTILINE)
    for found in TRACEBACK.finditer(log):
        is_chained = CHAINED.match(log, found.end())
        if not is_chained and not found["what"].startswith(OF_TORCHRUN):
            return found["what"][:LONGEST]
    found_other = NOT_STARTED.search(log)
    return found_other["what"][:LONGEST] if found_other else ""


def verdict(run: RunFolder, attempt: Attempt, ending: Ending, restarts: int = 0) -> int:
    """Print how the run ended unless all is well, and return the exit code. Raises ScaleupError for a user's
    mistake."""
    error = ending.error
    if ending.kind == "refused" and error:
        raise ScaleupError([Problem(**problem) for problem in error["problems"]])
    if ending.kind in ("finished", "stopped"):
        return RESUMABLE if ending.kind == "stopped" else 0
    if error and error["traceback"] and ending.what == _sentence(error):
        print(error["traceback"], file=sys.stderr)
    latest = latest_checkpoint(run.checkpoints)
    lines = [
        f"error: {ending.what}",
        *([f"  after {restarts} restart{'s' if restarts > 1 else ''}"] if restarts else []),
        f"  the newest checkpoint is step {latest.step}; continue with --resume"
        if latest
        else "  no checkpoint was saved",
        f"  logs: {attempt.logs}",
    ]
    print("\n".join(lines), file=sys.stderr)
    return 1
