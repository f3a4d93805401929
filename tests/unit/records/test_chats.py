"""What results show of a conversation."""

from __future__ import annotations

from scaleup.records.chats import Chat, as_written

MESSAGES, TOOLS = [{"role": "user", "content": "hi"}], [{"name": "f"}]


def test_a_prompt_is_shown_with_its_tools() -> None:
    assert as_written(Chat(MESSAGES, TOOLS)) == {"prompt": MESSAGES, "tools": TOOLS}
    assert as_written(Chat(MESSAGES)) == {"prompt": MESSAGES}
    assert as_written("hi") == {"prompt": "hi"}
    assert as_written(None) == {"prompt": None}
