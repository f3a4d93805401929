"""Each `--sweep KEY=[V1,V2,...]` goes in; the points come out, with each one's overrides."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import yaml

from scaleup.errors import Problem

EXAMPLE = 'write KEY=[VALUE,...], e.g. "train.learning_rate=[1.0e-5, 3.0e-5]"'
NOT_SWEPT = ("name", "runs_dir", "stage", "cluster")
"""Lists the keys that no sweep may change: a point's run is named by us, and all are in one job."""


def sweep_points(sweeps: Sequence[str], problems: list[Problem]) -> list[list[str]]:
    """Return the overrides of each point of the product of all sweeps, the last one fastest; no point without a sweep.
    Every mistake is added to `problems`."""
    axes = [_axis(text, problems) for text in sweeps]
    keys = [sweep.partition("=")[0] for sweep in sweeps]
    problems += [Problem(f"--sweep {key}", "is given twice", "give all values at once") for key in _repeated(keys)]
    return [list(point) for point in itertools.product(*axes)] if axes else []


def _axis(text: str, problems: list[Problem]) -> list[str]:
    key, _, listed = text.partition("=")
    try:
        values: Any = yaml.safe_load(listed)
    except yaml.YAMLError:
        values = None
    if not key or not isinstance(values, list) or not values:
        problems.append(Problem(f"--sweep {text}", "lists no values", EXAMPLE))
        return []
    if key.split(".")[0] in NOT_SWEPT:
        problems.append(Problem(f"--sweep {key}", "is the same for all points", "sweep over another key"))
    return [f"{key}={_flow(value)}" for value in values]


def _flow(value: Any) -> str:
    """Dump a value on one line, as an override is written."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def _repeated(keys: Sequence[str]) -> list[str]:
    return sorted({key for key in keys if keys.count(key) > 1})
