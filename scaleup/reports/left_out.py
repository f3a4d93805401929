"""This module says in a sentence how many rows a finished run has left out for their length, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOO_LONG = "too_long"
"""Is the reason of rows that are left out for their length (data/too_long.py)."""


def length_sentence(metrics: Mapping[str, Any], max_length: int) -> str:
    """Returns the sentence, from the metrics of a manifest; empty where no row was left out."""
    if not (number := metrics.get("rows_too_long")):
        return ""
    what = "row was longer" if number == 1 else "rows were longer"
    limit = f"data.max_length ({max_length})"
    return f"{number:,} {what} than {limit} and left out -> raise it, or cut them with data.too_long: truncate"
