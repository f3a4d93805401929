"""This module holds the errors for users: what is wrong, where, and what to do. Everything else is a bug of ours and
keeps its traceback."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

USER = re.compile(r"""(?<=://)(?:[^\s/'"]*|[^\s/'":]+:(?!\d+/)[^\s'"]*)@""")
"""Matches the name and password within an address, also one whose password has a slash that is not escaped."""


def without_passwords(text: str) -> str:
    """Returns a text that may be shown: addresses in it without the names and passwords of users."""
    return USER.sub("***@", text)


@dataclass(frozen=True)
class Problem:
    """Describes one mistake: `where` is a config key or a file (with its line), `what` is wrong there, `remedy` is what
    to do."""

    where: str
    what: str
    remedy: str = ""

    def __post_init__(self) -> None:
        for name in ("where", "what", "remedy"):
            object.__setattr__(self, name, without_passwords(getattr(self, name)))

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" -> {self.remedy}" if self.remedy else "")


class ScaleupError(Exception):
    """Carries one or more problems that the user can fix. The command line prints them all and exits with code 2."""

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        self.problems: list[Problem] = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def of(cls, where: str, what: str, remedy: str = "") -> ScaleupError:
        return cls(Problem(where, what, remedy))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)
