"""What becomes of a row of more tokens than it may have, by `data.too_long`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from scaleup.config.data import DataConfig
from scaleup.errors import ScaleupError

TOO_LONG, UNLEARNED = "too_long", "unlearned"
"""Name why rows are left out: for their length, or because nothing of them is learned within it."""


def is_dropped(length: int, data: DataConfig, left_out: Counter[str]) -> bool:
    """Returns whether a row of so many tokens is left out, which is counted. Raises ScaleupError where it is an
    error."""
    if length <= data.max_length or data.too_long == "truncate":
        return False
    if data.too_long == "error":
        what, remedy = f"is {data.max_length}, and the row has more tokens", "raise it, or set data.too_long otherwise"
        raise ScaleupError.of("data.max_length", what, remedy)
    left_out[TOO_LONG] += 1
    return True


def left_out_sentences(left_out: Mapping[str, int], rows: int, data: DataConfig) -> Iterator[str]:
    """Yields a sentence for each reason why some of so many rows are left out."""
    limit = f"data.max_length ({data.max_length})"
    if number := left_out.get(TOO_LONG):
        what = "is longer than" if number == 1 else "are longer than"
        yield (
            f"{number:,} of {rows:,} rows {what} {limit} and left out -> raise it, or cut them with "
            "data.too_long: truncate"
        )
    if number := left_out.get(UNLEARNED):
        has, is_ = ("has", "is") if number == 1 else ("have", "are")
        yield f"{number:,} of {rows:,} rows {has} nothing to learn within {limit} and {is_} left out -> raise it"
