"""This package holds the commands, a module for each panel of `scaleup --help`. They have no logic: each reads its
arguments, calls one function and gives its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

# Each panel registers its commands as it is imported: help lists them in this order.
from scaleup.cli import train, runs, results, cluster, machine  # isort: skip  # noqa: F401
from scaleup.cli.app import app
from scaleup.config.load import NO_TEXT, UTF_8
from scaleup.errors import Problem, ScaleupError
from scaleup.streams import steady_streams, unwritten

LONGEST = 200
"""Is the number of letters of a text that is quoted in a refusal."""
RUNS = ("run", "search", "evaluate", "generate", "export")
"""Are the commands that run something. What they print stands in the run folder too, and their exit code is the run's,
whatever became of what they printed."""


def main() -> None:
    with steady_streams():
        code = _code_of(app)
        if why := unwritten():
            print(f"error: stdout: what was printed is not whole: {why}", file=sys.stderr)
            code = code if set(RUNS).intersection(sys.argv[1:2]) else code or 1
        sys.exit(code)


def _code_of(command: Callable[[], object]) -> int:
    """Returns the exit code of a command; what it is refused for is printed."""
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ScaleupError as error:
        problems = error.problems
    except UnicodeEncodeError as error:  # a file's name that the locale has no letters for
        problems = [Problem("LC_ALL, LANG", f"{error.object[:LONGEST]!r} {NO_TEXT}", UTF_8)]
    else:
        return 0
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2
