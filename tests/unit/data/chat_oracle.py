"""What is learned of a conversation, told by hand: how a template shows an answer, whose words are then looked for in
the rendered text. This knows nothing of the code that it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Any


@dataclass(frozen=True)
class Look:
    """How a template shows an answer: the header, what generation has to write before the words (`lead`), and what ends
    the turn. What of it generation starts from (`given`) is not learned."""

    header: str
    end: str
    lead: str = ""
    given: str | None = None
    """The generation prompt, where it is another than the header."""
    later: tuple[str, str] | None = None
    """Lead and end once the conversation goes on, where they are others."""
    goes_on: str = "any"
    """What must follow for that: any message, or one of the user."""
    thought: str | None = None
    """The lead of an answer with the reasoning 'Think', where the template shows it."""
    keeps_thought: bool = True
    """Whether that is still shown once a user's message follows."""
    late_thought: str | None = None
    """The lead that it has then, where that is another than without reasoning."""
    first: str | None = None
    """The lead of an answer that nobody asked for, where it is another."""
    needs_user: bool = False
    """Whether the template refuses a conversation that ends before the user has spoken."""
    call: str | None = None
    """What stands for a call of a tool behind the header, end and all."""
    late_call: str | None = None
    after_tool: tuple[str, str] | None = None
    """The header and the lead of an answer behind a tool's result, where they are others."""
    after_answer: str | None = None
    """The header of an answer behind another one, where it is another."""
    tail: str = ""
    """What is learned behind the last turn: a template may mark what ends the conversation."""
    marks: bool = False
    """Whether the template marks what is learned: then it is learned as it is shown."""

    def shown(self, chat: list[dict[str, Any]], turn: int, is_last: bool) -> tuple[str, str, str]:
        """Returns header, lead and end of an answer, at its turn or in the whole conversation."""
        message, rest = chat[turn], [] if is_last else chat[turn + 1 :]
        before = chat[turn - 1]["role"] if turn else ""
        is_asked = any(m["role"] == "user" for m in chat[:turn])
        asks = any(m["role"] == "user" for m in rest)
        goes_on = self.later is not None and (asks or (bool(rest) and self.goes_on == "any"))
        header, lead, end = self.header, *(self.later if goes_on and self.later else (self.lead, self.end))
        if message.get("reasoning_content") and self.thought is not None:
            kept = self.keeps_thought or not asks
            lead = self.thought if kept else lead if self.late_thought is None else self.late_thought
        elif self.first is not None and not is_asked:
            lead = self.first
        if message.get("tool_calls"):
            assert self.call is not None
            lead, end = self.late_call if goes_on and self.late_call is not None else self.call, ""
        if before == "tool" and self.after_tool is not None:
            header, lead = self.after_tool[0], self.after_tool[1] + (lead if message.get("tool_calls") else "")
        elif before == "assistant" and self.after_answer is not None:
            header = self.after_answer
        return header, lead, end

    def num_given(self, header: str, lead: str) -> int:
        """Returns how many characters of what stands before the words generation starts from."""
        if self.given is None or header != self.header:
            return len(header)
        pairs = zip(self.given, header + lead, strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def expected(look: Look, text: str, chat: list[dict[str, Any]], unlearned: frozenset[int]) -> list[tuple[int, int]]:
    """Returns the characters that are learned of a conversation whose last message is learned."""
    spans, cursor, last = [], 0, len(chat) - 1
    for turn, message in enumerate(chat):
        words = message.get("content") or ""
        if message["role"] != "assistant":
            found = max(text.find(words, cursor), text.find(words.strip(), cursor))
            cursor = found + len(words.strip()) if words and found >= 0 else cursor
            continue
        header, lead, end = look.shown(chat, turn, turn == last)
        ways = [f"{header}{lead}{shown}{end}" for shown in (words, words.rstrip(), words.strip())]
        whole = next(way for way in ways if text.find(way, cursor) >= 0)
        start = text.index(whole, cursor)
        cursor = start + len(whole)
        is_as_given = turn == last or look.marks or look.shown(chat, turn, True) == (header, lead, end)
        is_refused = look.needs_user and not any(m["role"] == "user" for m in chat[:turn])
        if is_as_given and not is_refused and turn not in unlearned:
            learned = start + look.num_given(header, lead)
            spans.append((learned, cursor + (len(look.tail) if turn == last else 0)))
    return spans
