"""This module reads what a run has logged so far, also while it runs: `metrics.jsonl`, a line of JSON a step."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

LAST_BYTES = 1 << 16
"""Bounds what is read of the end of `metrics.jsonl`."""


def last_metrics(file: Path) -> dict[str, Any]:
    """Return the value that each figure had in the last lines of a log, with the `step` of the last one."""
    metrics: dict[str, Any] = {}
    for line in _last_lines(file):
        with suppress(ValueError, TypeError):  # a line that a killed process left half-written
            metrics |= json.loads(line)
    return metrics


def _last_lines(file: Path) -> list[bytes]:
    with suppress(OSError), file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        start = max(0, size - LAST_BYTES)
        opened.seek(start)
        return opened.read().splitlines()[1 if start else 0 :]
    return []


def logged_values(file: Path, name: str) -> dict[int, float]:
    """Return the values of a metric in a run's `metrics.jsonl` by step; what a killed process left half-written is left
    out."""
    values: dict[int, float] = {}
    for line in logged_lines(file):
        if isinstance(value := line.get(name), (int, float)):
            values[line["step"]] = float(value)
    return values


def logged_lines(file: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a run's `metrics.jsonl`; none where there is no such file."""
    lines = []
    with suppress(OSError):
        for line in file.read_bytes().splitlines():
            with suppress(ValueError):  # a line that a killed process left half-written
                if isinstance(read := json.loads(line), dict) and isinstance(read.get("step"), int):
                    lines.append(read)
    return lines
