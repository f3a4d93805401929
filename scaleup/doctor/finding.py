"""What a check found: one row of the doctor's table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from scaleup.errors import ScaleupError

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """`name` is what was looked at, or the config key at fault; `remedy` is what to do about it."""

    name: str
    level: Level
    what: str
    remedy: str = ""


def ok(name: str, what: str) -> Finding:
    return Finding(name, "ok", what)


def warn(name: str, what: str, remedy: str = "") -> Finding:
    """It may run all the same."""
    return Finding(name, "warn", what, remedy)


def fail(name: str, what: str, remedy: str = "") -> Finding:
    """A run would end here."""
    return Finding(name, "fail", what, remedy)


def findings_of(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Everything a check yields. One that breaks is a finding itself: a sick machine may break any of them, and the
    others have their say all the same."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except ScaleupError as error:
        found += [fail(problem.where, problem.what, problem.remedy) for problem in error.problems]
    except Exception as error:
        found.append(fail(name, f"could not be checked: {type(error).__name__}: {' '.join(str(error).split())[:300]}"))
    return found


def size_text(size: float) -> str:
    """Bytes for the eye."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 2**10:,.1f} KiB"
