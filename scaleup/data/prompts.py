"""The prompts of a run, in an order that follows from the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scaleup.config.schema import DataConfig
from scaleup.data.order import MixtureOrder, ShuffledOrder
from scaleup.data.sources import read_prompt_rows
from scaleup.data.tokenization import Encoder
from scaleup.records.chats import Chat


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

    def rollout(self, number: int, size: int) -> list[Prompt]:
        """The prompts of a rollout, counted from 0."""
        return [self[position] for position in range(number * size, (number + 1) * size)]


def prompts_of(
    encoder: Encoder, prompts: Sequence[str | Chat], columns: Sequence[dict[str, Any]] | None = None
) -> list[Prompt]:
    """Returns the prompts of texts and chats, with the columns of their rows."""
    ids = encoder.prompt_ids(prompts) if prompts else []
    rows = zip(ids, prompts, columns or [{}] * len(prompts), strict=True)
    return [Prompt(i, encoder.as_text(p), row, p if isinstance(p, Chat) else None) for i, p, row in rows]


def read_prompts(data: DataConfig, split: str, encoder: Encoder) -> list[list[Prompt]]:
    """The prompts of each source of a split. Raises ScaleupError for rows that cannot be used."""
    prompts = []
    for source in getattr(data, split) or []:
        rows = read_prompt_rows(data, source, split)
        prompts.append(prompts_of(encoder, [prompt for prompt, _ in rows], [values for _, values in rows]))
    return prompts
