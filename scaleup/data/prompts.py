"""The prompts of a run, in an order that follows from the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from scaleup.config.data import DataConfig
from scaleup.data.order import MixtureOrder, ShuffledOrder
from scaleup.data.prepared import prepared_rows
from scaleup.data.prompt_rows import NotKept, PromptEncoder, PromptRow
from scaleup.data.rows import Rows
from scaleup.data.sources import read_prompt_rows
from scaleup.data.tokenization import Encoder
from scaleup.distributed.progress import Progress
from scaleup.records.chats import Chat
from scaleup.records.examples import prompt_maker


@dataclass(frozen=True)
class Prompt:
    ids: Sequence[int]
    text: str
    """What a reward model reads: of a chat, what its template made of it."""
    columns: dict[str, Any] = field(default_factory=dict)
    """The row it came from."""
    chat: Chat | None = None
    """The conversation that the text was made of, for a reward model with a template of its own."""


class PromptOrder:
    """Endless: rollout after rollout, each source giving its share, every epoch a permutation of its own."""

    def __init__(self, sources: Sequence[Sequence[Prompt]], weights: Sequence[float], seed: int, shuffle: bool) -> None:
        self._sources = sources
        self._mixture = MixtureOrder(weights)
        self._orders = [ShuffledOrder(len(rows), [seed, n], shuffle) for n, rows in enumerate(sources)]

    def __getitem__(self, position: int) -> Prompt:
        source, draw = self._mixture[position]
        return self._sources[source][self._orders[source][draw]]

    def drawn(self, first: int, count: int) -> list[Prompt]:
        """Returns so many prompts from a position on, counted from 0."""
        return [self[position] for position in range(first, first + count)]


def prompts_of(
    encoder: Encoder, prompts: Sequence[str | Chat], columns: Sequence[dict[str, Any]] | None = None
) -> list[Prompt]:
    """Returns the prompts of texts and chats, with the columns of their rows."""
    ids = encoder.prompt_ids(prompts) if prompts else []
    rows = zip(ids, prompts, columns or [{}] * len(prompts), strict=True)
    return [Prompt(i, encoder.as_text(p), row, p if isinstance(p, Chat) else None) for i, p, row in rows]


class KeptPrompts(Sequence[Prompt]):
    """Holds prompts whose ids and rows lie in a file; their texts are made when they are needed."""

    def __init__(self, rows: Rows, make: Callable[[dict[str, Any], int], str | Chat], encoder: Encoder) -> None:
        self._rows, self._make, self._encoder = rows, make, encoder

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Prompt: ...
    @overload
    def __getitem__(self, place: slice) -> list[Prompt]: ...
    def __getitem__(self, place: int | slice) -> Prompt | list[Prompt]:
        if isinstance(place, slice):
            return [self[at] for at in range(*place.indices(len(self)))]
        row: PromptRow = self._rows[place]
        values = row.values
        prompt = self._make(values, row.index)
        chat = prompt if isinstance(prompt, Chat) else None
        return Prompt(row.ids.tolist(), self._encoder.as_text(prompt), values, chat)


def read_prompts(
    data: DataConfig, split: str, encoder: Encoder, progress: Progress | None = None
) -> list[Sequence[Prompt]]:
    """The prompts of each source of a split, tokenized once; those of rows that no file can give back as they were are
    kept in memory. Raises ScaleupError for rows that cannot be used."""
    prompts: list[Sequence[Prompt]] = []
    for source in getattr(data, split) or []:
        try:
            rows = prepared_rows(data, source, split, PromptEncoder(encoder), progress).rows
            prompts.append(KeptPrompts(rows, prompt_maker(data, source), encoder))
        except NotKept:
            read = read_prompt_rows(data, source, split)
            prompts.append(prompts_of(encoder, [prompt for prompt, _ in read], [values for _, values in read]))
    return prompts
