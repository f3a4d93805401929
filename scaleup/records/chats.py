"""This module holds what a conversation is: messages as a chat template gets them, and the tools beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""Maps what the chat template reads of a turn: `role`, `content` (text or None) and every other key that the row has,
but for `weight` and `train`, which say what is learned."""


@dataclass(frozen=True)
class Chat:
    """Holds a conversation and the tools that its template shows."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    unlearned: frozenset[int] = frozenset()
    """Places of the assistant's messages that are read and not learned."""
