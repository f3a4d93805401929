"""A conversation goes in; it is refused if the chat template leaves out a call of a tool in it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from scaleup.data.rendering import PROBE, Renderer
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat, Message


def check_tool_calls(renderer: Renderer, chat: Chat) -> None:
    """Raises ScaleupError for calls that the template does not show: under other names, or with other
    arguments, the text is the same."""
    named = list(chat.messages)
    for turn, message in enumerate(chat.messages):
        if calls := message.get("tool_calls"):
            renamed = [altered_call(call, name=_name(turn, place)) for place, call in enumerate(calls)]
            named[turn] = {**message, "tool_calls": renamed}
    places = [(turn, place) for turn, m in enumerate(named) for place, _ in enumerate(m.get("tool_calls") or [])]
    if not places:
        return
    try:
        text = renderer.text(named, chat.tools)
    except ScaleupError:  # it may know the tools by their names
        text = ""
    for turn, place in places:
        if _name(turn, place) not in text and not _is_shown(renderer, chat, turn, place):
            what = f"the chat template leaves out messages[{turn}].tool_calls[{place}]"
            remedy = "name a template that shows it (data.chat_template), or drop the row"
            raise ScaleupError.of("data.messages", what, remedy)


def altered_call(call: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Returns a call of a tool with another name, or other arguments."""
    return {**call, "function": {**call["function"], **changes}} if "function" in call else {**call, **changes}


def text_with(renderer: Renderer, chat: Chat, turn: int, message: Message) -> str:
    """Returns the text of a conversation with another message in the place of one."""
    return renderer.text([*chat.messages[:turn], message, *chat.messages[turn + 1 :]], chat.tools)


def _is_shown(renderer: Renderer, chat: Chat, turn: int, place: int) -> bool:
    """Returns whether the text is another one with another call of a tool in the place of one."""
    text, message, others = renderer.text(chat.messages, chat.tools), chat.messages[turn], []
    changes: list[dict[str, Any]] = [{"name": _name(turn, place)}, {"arguments": {PROBE: PROBE}}]
    for change in changes:
        calls = list(message["tool_calls"])
        calls[place] = altered_call(calls[place], **change)
        with suppress(ScaleupError):
            others.append(text_with(renderer, chat, turn, {**message, "tool_calls": calls}))
    return not others or any(other != text for other in others)


def _name(turn: int, place: int) -> str:
    return f"{PROBE}{turn}_{place}_"
