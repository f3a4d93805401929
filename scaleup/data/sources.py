"""Rows from files or `datasets` names, tokenized: all at once (MapSource) or as they are needed (StreamSource)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Protocol, TypeVar

import numpy as np

from scaleup.config.data import DataConfig, SourceConfig
from scaleup.data.order import ShuffledOrder
from scaleup.data.rows import Chosen, Rows
from scaleup.data.tokenization import FILLER, RowEncoder, TokenRow
from scaleup.errors import ScaleupError
from scaleup.plan.arithmetic import held_out_rows
from scaleup.records.chats import Chat
from scaleup.records.examples import Example, example_maker, prompt_maker, row_problem
from scaleup.records.formats import local_path, read_rows

T = TypeVar("T")
MOST_PROBLEMS = 5


class Source(Protocol):
    def draw(self, number: int) -> TokenRow:
        """The nth row of this source's endless, shuffled order."""
        ...


class MapSource:
    """Rows of tokens that are all there, in a mapped file or in memory."""

    def __init__(self, rows: Rows, seed: Sequence[int], shuffle: bool) -> None:
        self.rows = rows
        self._order = ShuffledOrder(len(rows), seed, shuffle)

    def draw(self, number: int) -> TokenRow:
        row: TokenRow = self.rows[self._order[number]]
        return row

    def places(self, first: int, end: int) -> np.ndarray:
        """Returns the places of the rows that the draws from `first` up to `end` give."""
        return self._order.span(first, end)


class StreamSource:
    """Rows read as they are needed, shuffled in blocks. A draw further on reads up to there; one further back starts
    over: so going on from a checkpoint reads, but does not tokenize, everything before it."""

    def __init__(
        self,
        open_rows: Callable[[], Iterator[Any]],
        encode: Callable[[Any], TokenRow | None],
        block: int,
        seed: Sequence[int],
        shuffle: bool,
    ) -> None:
        self._open_rows = open_rows
        self._encode = encode
        self._block_size = block
        self._seed = list(seed)
        self._shuffle = shuffle
        self._rewind()

    def _rewind(self) -> None:
        self._rows = self._open_rows()
        self._block: list[Any] = []
        self._first = 0
        self._blocks_read = 0

    def draw(self, number: int) -> TokenRow:
        if number < self._first:
            self._rewind()
        while number >= self._first + len(self._block):
            self._next_block()
        return self._encode(self._block[number - self._first]) or FILLER

    def _next_block(self) -> None:
        self._first += len(self._block)
        self._block = list(islice(self._rows, self._block_size))
        if not self._block:  # the end of an epoch: start over
            self._rows = self._open_rows()
            self._block = list(islice(self._rows, self._block_size))
        if not self._block:
            raise ScaleupError.of("data.train", "a streamed source has no rows", "name another")
        if self._shuffle:
            order = np.random.default_rng([*self._seed, self._blocks_read]).permutation(len(self._block))
            self._block = [self._block[index] for index in order]
        self._blocks_read += 1


def read_source(
    data: DataConfig, source: SourceConfig, split: str, streaming: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, values) of each row of a source, from files or through `datasets`, up to its `max_rows`."""
    return islice(_all_rows(data, source, split, streaming), source.max_rows)


def _all_rows(
    data: DataConfig, source: SourceConfig, split: str, streaming: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    path = local_path(data, source, split)
    if path is not None:
        yield from ((row.where, row.values) for row in read_rows(path))
        return
    for index, values in enumerate(hub_rows(source, split, streaming)):
        yield f"{source.path} row {index + 1}", values


def hub_rows(source: SourceConfig, split: str, streaming: bool) -> Any:
    """A dataset of the hub, by `datasets`. Raises ScaleupError where it cannot be had."""
    import datasets  # heavy, and only hub names need it

    try:
        return datasets.load_dataset(source.path, source.name, split=source.split or split, streaming=streaming)
    except Exception as error:
        raise ScaleupError.of(
            f"data.{split}",
            f"the dataset {source.path!r} cannot be loaded: {error}",
            "check its name, split and the network",
        ) from error


def read_examples(data: DataConfig, source: SourceConfig, split: str) -> list[Example]:
    """All rows of a source as examples. Raises ScaleupError with the first rows that cannot be used."""
    return _made(example_maker(data, source), data, source, split)


def read_prompts(data: DataConfig, source: SourceConfig, split: str) -> list[str | Chat]:
    """As `read_examples`, for rows that need no answer."""
    return _made(prompt_maker(data, source), data, source, split)


def read_prompt_rows(data: DataConfig, source: SourceConfig, split: str) -> list[tuple[str | Chat, dict[str, Any]]]:
    """As `read_prompts`, each with its row."""
    make = prompt_maker(data, source)
    return _made(lambda values, index: (make(values, index), values), data, source, split)


def _made(make: Callable[[dict[str, Any], int], T], data: DataConfig, source: SourceConfig, split: str) -> list[T]:
    made, problems = [], []
    for index, (where, values) in enumerate(read_source(data, source, split)):
        try:
            made.append(make(values, index))
        except ScaleupError as error:
            problems.append(row_problem(where, error))
            if len(problems) >= MOST_PROBLEMS:
                break
    if problems:
        raise ScaleupError(problems)
    return made


def made_examples(data: DataConfig, source: SourceConfig, split: str, encoder: RowEncoder) -> list[Any]:
    """All rows of a source as the encoder's examples, of which a row may make several or none."""
    return list(chain.from_iterable(_made(encoder.maker(source), data, source, split)))


def open_stream(data: DataConfig, source: SourceConfig, encoder: RowEncoder, seed: Sequence[int]) -> StreamSource:
    make = encoder.maker(source)

    def open_rows() -> Iterator[tuple[int, str, dict[str, Any]]]:
        for index, (where, values) in enumerate(read_source(data, source, "train", streaming=True)):
            yield index, where, values

    def encode(row: tuple[int, str, dict[str, Any]]) -> TokenRow | None:
        index, where, values = row
        try:
            made = encoder(make(values, index))
            return made[0] if made else None
        except ScaleupError as error:
            raise ScaleupError(row_problem(where, error)) from None

    return StreamSource(open_rows, encode, data.shuffle_buffer, seed, data.shuffle)


def hold_out(rows: Rows, fraction: float, seed: Sequence[int]) -> tuple[Rows, Rows]:
    """(train, validation): the held-out rows are drawn by the seed."""
    count = held_out_rows(len(rows), fraction)
    is_held = np.zeros(len(rows), bool)
    is_held[np.random.default_rng([*seed, 0x5EED]).permutation(len(rows))[:count]] = True
    return Chosen(rows, np.flatnonzero(~is_held)), Chosen(rows, np.flatnonzero(is_held))
