"""This module keeps what each group of a run did when, a line a span of time, so that a report can show who worked and
who waited."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Span:
    """Tells what a group did from one moment to another, in seconds since 1970."""

    what: str
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """Writes what one process did, or nothing."""

    file: Path | None = None

    @contextmanager
    def span(self, what: str) -> Iterator[None]:
        """Note what happens in the block. A disk that takes no more lines does not end a run."""
        start = time.time()
        try:
            yield
        finally:
            if self.file is not None:
                line = json.dumps({"what": what, "start": round(start, 4), "end": round(time.time(), 4)})
                with suppress(OSError):
                    self.file.parent.mkdir(exist_ok=True)
                    with self.file.open("a", encoding="utf-8") as file:
                        file.write(line + "\n")


UNNOTED = Timeline()
"""Writes nothing."""


def read_timelines(folder: Path) -> dict[str, list[Span]]:
    """Return the spans of each group by its name, the policy's first. A line that a killed process left half-written is
    passed over."""
    timelines = {}
    for file in sorted(folder.glob("*.jsonl"), key=lambda file: (file.stem != "policy", file.stem)):
        spans = []
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError):
                spans.append(Span(**json.loads(line)))
        timelines[file.stem] = spans
    return timelines
