"""Rows that are answered go in; their prompts as token ids come out, each with the row that it was made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scaleup.config.data import SourceConfig
from scaleup.data.tokenization import Encoder
from scaleup.records.chats import Chat
from scaleup.records.examples import prompt_maker


class NotKept(Exception):
    """Tells that a row holds what a file cannot give back as it was: a date, say."""


@dataclass(frozen=True, eq=False)
class PromptRow:
    """Is a prompt as it is kept: its ids, the place in its source of the row that it was made of, and that row as
    JSON."""

    ids: np.ndarray
    index: int
    row: bytes

    @property
    def values(self) -> dict[str, Any]:
        """Returns the row."""
        return dict(json.loads(self.row))


@dataclass(frozen=True)
class PromptEncoder:
    """Tokenizes prompts as an encoder does. It raises NotKept."""

    encoder: Encoder
    left_out: Counter[str] = field(default_factory=Counter)
    task: str = "prompts"

    def recipe(self) -> dict[str, Any]:
        return self.encoder.recipe() | {"of": "prompts"}

    def maker(self, source: SourceConfig) -> Callable[[Mapping[str, Any], int], list[Any]]:
        make = prompt_maker(self.encoder.data, source)
        return lambda values, index: [(make(values, index), index, _as_json(values))]

    def __call__(self, examples: Sequence[tuple[str | Chat, int, bytes]]) -> list[PromptRow]:
        ids = self.encoder.prompt_ids([prompt for prompt, _, _ in examples]) if examples else []
        rows = zip(ids, examples, strict=True)
        return [PromptRow(np.asarray(tokens, np.int32), index, row) for tokens, (_, index, row) in rows]


def _as_json(values: Mapping[str, Any]) -> bytes:
    try:
        row = json.dumps(values)
        if json.loads(row) == values:
            return row.encode()
    except (TypeError, ValueError):
        pass
    raise NotKept
