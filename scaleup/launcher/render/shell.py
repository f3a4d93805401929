"""Values in a shell's script and in a Slurm script's options. Nothing else in the project quotes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping


def words(values: Iterable[object]) -> str:
    """A command, each value one word of it whatever it holds."""
    return " ".join(shlex.quote(str(value)) for value in values)


def exports(environment: Mapping[str, str]) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def sbatch_path(path: object) -> str:
    """A path as sbatch reads it from an #SBATCH line: in quotes, and with no pattern like %j in it. A backslash would
    keep the patterns beside it from being read, so there may be none."""
    text = str(path).replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'
