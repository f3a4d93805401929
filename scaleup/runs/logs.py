"""A run goes in; what its newest attempt logs comes out, line by line, each with the name of its log."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.errors import ScaleupError
from scaleup.plan.types import Plan
from scaleup.runs.state import place_of, run_at
from scaleup.streams import reader_is_gone

POLL_SECONDS = 0.3
INTERRUPTED = 130
"""Is the exit code of what Ctrl-C has ended: 128 + SIGINT."""


def print_logs(path: Path, rank: str | None, follow: bool) -> int:
    """Print the logs of a run's newest attempt; `follow`: go on until the run has ended. Return the exit code.

    Raises ScaleupError if there is no such run or no attempt of it, and for a log that it does not have."""
    run = run_at(path)
    runs_on = place_of(run) is not None
    if run.newest_attempt() is None and not (runs_on and follow):
        raise ScaleupError.of(str(path), "has no logs yet: no attempt of it was started", "see scaleup status")
    if rank is not None:
        _check_rank(run, rank, runs_on)
    logs = Logs(run, rank)
    try:
        logs.print_new()
        while follow and runs_on and not reader_is_gone():
            time.sleep(POLL_SECONDS)
            runs_on = place_of(run) is not None  # before the last look, which has what was written in the end
            logs.print_new()
    except KeyboardInterrupt:
        return INTERRUPTED
    logs.print_rest()
    return 0


def _check_rank(run: RunFolder, rank: str, runs_on: bool) -> None:
    """Raises ScaleupError for a log that is not there, and that no rank of a running run's plan may write yet."""
    attempt = run.newest_attempt()
    names = [file.stem for file in _files(attempt)] if attempt else []
    if runs_on:
        with suppress(OSError, ScaleupError):
            groups = Plan.read(run.plan_file).groups
            names += [f"{group.name}-rank{number}" for group in groups for number in range(group.num_processes)]
    if rank not in names:
        which = f"attempt {attempt.number}" if attempt else str(run.path)
        remedy = f"it has {', '.join(dict.fromkeys(names)) or 'none yet'}"
        raise ScaleupError.of("--rank", f"{which} has no log {rank!r}", remedy)


def _files(attempt: Attempt) -> list[Path]:
    return sorted(attempt.logs.glob("*.log"))


def _show(line: str) -> None:
    print(line, flush=True)


@dataclass
class Logs:
    """Prints the lines of all logs of a run's newest attempt, or of one of them, that it has not printed yet."""

    run: RunFolder
    name: str | None = None
    show: Callable[[str], None] = _show
    _attempt: Attempt | None = None
    _printed: dict[Path, int] = field(default_factory=dict)
    """Maps a log -> how many bytes of it were printed."""

    def print_new(self) -> None:
        """Print whole lines. What an attempt has left is printed before the first line of the next one."""
        newest = self.run.newest_attempt()
        if self._attempt is not None and newest != self._attempt:
            self.print_rest()
            self.show(f"--- attempt {newest.number if newest else 0}")
        self._attempt = newest
        self._print(is_last=False)

    def print_rest(self) -> None:
        """Print what stands behind the last whole line, too."""
        self._print(is_last=True)

    def _print(self, is_last: bool) -> None:
        files = _files(self._attempt) if self._attempt else []
        for file in files:
            if self.name in (None, file.stem):
                prefix = "" if self.name else f"{file.stem}: "
                for line in self._new_lines(file, is_last):
                    self.show(prefix + line.decode(errors="replace"))

    def _new_lines(self, file: Path, is_last: bool) -> list[bytes]:
        start = self._printed.get(file, 0)
        try:
            with file.open("rb") as opened:
                opened.seek(start)
                new = opened.read()
        except OSError:
            return []
        if not is_last:
            new = new[: new.rfind(b"\n") + 1]
        self._printed[file] = start + len(new)
        return new.splitlines()
