"""A reward that can be verified: whether the first number of a response is the right one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def right(completions: Sequence[str], answer: Sequence[int], **columns: Any) -> list[float]:
    """Return 1 for each completion whose first number is the answer of its row, else 0."""
    numbers = [re.search(r"\d+", text) for text in completions]
    return [float(found is not None and int(found[0]) == due) for found, due in zip(numbers, answer, strict=True)]
