"""This module holds what a check yields: one row of the doctor's table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from scaleup.errors import ScaleupError

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """Holds one result of a check: `name` is what was looked at, or the config key at fault; `remedy` is what to do
    about it."""

    name: str
    level: Level
    what: str
    remedy: str = ""


def ok(name: str, what: str) -> Finding:
    return Finding(name, "ok", what)


def warn(name: str, what: str, remedy: str = "") -> Finding:
    """Return a finding with which a run may run all the same."""
    return Finding(name, "warn", what, remedy)


def fail(name: str, what: str, remedy: str = "") -> Finding:
    """Return a finding at which a run would end."""
    return Finding(name, "fail", what, remedy)


def findings_of(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return everything a check yields. A check that fails is a finding itself: a sick machine may break any of them,
    and the others go on."""
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except ScaleupError as error:
        findings += [fail(problem.where, problem.what, problem.remedy) for problem in error.problems]
    except Exception as error:
        findings.append(
            fail(name, f"could not be checked: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        )
    return findings


def size_text(size: float) -> str:
    """Format a number of bytes for people."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 2**10:,.1f} KiB"
