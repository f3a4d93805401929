"""A source's rows go in, in parts of some hundred; what the encoder makes of each part comes out, in their order: here
where they are few, and by a process a core where they are many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from scaleup.config.data import DataConfig, SourceConfig
from scaleup.data.columns import FORMS, Columns, form_name
from scaleup.data.sources import MOST_PROBLEMS, read_source
from scaleup.data.tokenization import RowEncoder
from scaleup.data.workers import Workers, num_cores
from scaleup.errors import Problem, ScaleupError
from scaleup.records.examples import row_problem

PART = 500
FEW_PARTS = 40
"""Counts the parts for which no processes are started: they take seconds to import what they need."""

Row = tuple[int, str, dict[str, Any]]
"""Holds a row's index in its source, its place, and its values."""


@dataclass(frozen=True)
class Part:
    """Is what was made of some rows."""

    num_read: int
    num_rows: int = 0
    form: str | None = None
    """Names the rows' form, see data/columns.py; None where there are none."""
    columns: Columns = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    problems: Sequence[Problem] = ()
    """Tells of the first rows that no example can be made of."""


def tokenized(data: DataConfig, source: SourceConfig, split: str, encoder: RowEncoder) -> Iterator[Part]:
    """Yields what the encoder makes of a source's rows. Raises ScaleupError as reading and encoding do."""
    parts = _parts((index, *row) for index, row in enumerate(read_source(data, source, split)))
    setting, cores = (encoder, source), num_cores()
    first = list(islice(parts, FEW_PARTS))
    if len(first) < FEW_PARTS or cores == 1:
        yield from map(worker(setting), chain(first, parts))
        return
    with closing(Workers("scaleup.data.tokenize:worker", setting, cores)) as workers:
        yield from workers.map(chain(first, parts))


def _parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while part := list(islice(rows, PART)):
        yield part


def _refused(encoder: RowEncoder, examples: Sequence[Any], places: Sequence[str]) -> Iterator[Problem]:
    """Yields what the encoder has against single examples."""
    for example, where in zip(examples, places, strict=True):
        try:
            encoder([example])
        except ScaleupError as error:
            yield row_problem(where, error)


def worker(setting: tuple[RowEncoder, SourceConfig]) -> Callable[[Sequence[Row]], Part]:
    """Returns what tokenizes a part."""
    encoder, source = setting
    make = encoder.maker(source)

    def work(part: Sequence[Row]) -> Part:
        examples: list[Any] = []
        places: list[str] = []
        problems: list[Problem] = []
        encoder.left_out.clear()
        for index, where, values in part:
            try:
                examples += make(values, index)
            except ScaleupError as error:
                problems.append(row_problem(where, error))
            places += [where] * (len(examples) - len(places))
        try:
            rows = [row for row in encoder(examples) if row is not None]
        except ScaleupError:
            problems += _refused(encoder, examples, places)
        if problems:
            return Part(len(part), problems=problems[:MOST_PROBLEMS])
        form = form_name(rows[0], encoder.task) if rows else None
        columns = FORMS[form].columns(rows) if form else {}
        return Part(len(part), len(rows), form, columns, Counter(encoder.left_out))

    return work
