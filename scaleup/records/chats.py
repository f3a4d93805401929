"""This module holds what a conversation is: messages as a chat template gets them, and the tools beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

Message = dict[str, Any]
"""Maps what the chat template reads of a turn: `role`, `content` (text or None) and every other key that the row has,
but for `weight` and `train`, which say what is learned."""

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
KNOWN_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", *REASONING_KEYS})


@dataclass(frozen=True)
class Chat:
    """Holds a conversation and the tools that its template shows."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    unlearned: frozenset[int] = frozenset()
    """Places of the messages of any role that are to be read and not learned: weight 0 or train false is on them."""
    given: frozenset[int] = frozenset()
    """Places of the assistant's messages that the answers go on from: they are learned only where everything is."""

    @property
    def answers(self) -> list[int]:
        """Returns the places of the assistant's messages that are learned."""
        roles = enumerate(message["role"] for message in self.messages)
        return [turn for turn, role in roles if role == "assistant" and turn not in self.unlearned | self.given]

    def split(self) -> list[Chat]:
        """Returns a conversation for each answer that is learned, up to it, which goes on from all before it."""
        answers = self.answers
        return [
            replace(self, messages=self.messages[: turn + 1], given=self.given | (set(answers) - {turn}))
            for turn in answers
        ]


def says_something(message: Message) -> bool:
    """Returns whether a message has words, reasoning or calls of tools."""
    texts = (message.get(key) for key in ("content", *REASONING_KEYS))
    return bool(message.get("tool_calls")) or any(text is not None and text.strip() for text in texts)


def is_answer(message: Message) -> bool:
    """Returns whether a message is one of the assistant's that says something."""
    return message["role"] == "assistant" and says_something(message)


def as_written(prompt: str | Chat | None) -> dict[str, Any]:
    """Returns a prompt, if there is one, as rows of results show it, with the tools of a conversation."""
    if not isinstance(prompt, Chat):
        return {"prompt": prompt}
    return {"prompt": prompt.messages} | ({"tools": prompt.tools} if prompt.tools else {})


def as_transcript(chat: Chat) -> str:
    """Returns the turns of a conversation as plain text, for a reader that has another template."""
    return "\n\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in chat.messages)
