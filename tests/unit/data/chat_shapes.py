"""Shapes of conversations."""

from scaleup.records.chats import Chat
from tests.unit.data.chat_looks import CALL, TOOLS


def system():
    return {"role": "system", "content": "Be brief."}


def user(words="Hi"):
    return {"role": "user", "content": words}


def says(words, **more):
    return {"role": "assistant", "content": words, **more}


def turns(count, **more):
    """Questions and answers, each with words of its own."""
    pairs = ((user(f"Question {n}?"), says(f"Answer {n}.", **more)) for n in range(count))
    return [message for pair in pairs for message in pair]


RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abcdef123", "content": "12 C"}
CALLING = [says(None, tool_calls=[CALL]), RESULT]
THINK = {"reasoning_content": "Think"}
SHAPES = {
    **{f"turns {count}": Chat(turns(count)) for count in range(1, 7)},
    **{f"system {count}": Chat([system(), *turns(count)]) for count in (1, 3)},
    "assistant first": Chat([says("Welcome."), *turns(2)]),
    "system, assistant first": Chat([system(), says("Welcome."), *turns(1)]),
    "assistant twice": Chat([user(), says("One."), says("Two.")]),
    "assistant twice, on": Chat([user(), says("One."), says("Two."), user("More?"), says("Three.")]),
    "says nothing first": Chat([user(), says(""), *turns(1)]),
    "says nothing last": Chat([*turns(1), user(), says("")]),
    "tools": Chat(turns(2), TOOLS),
    "calls": Chat([user(), CALLING[0]], TOOLS),
    "calls, answers": Chat([user(), *CALLING, says("Fine.")], TOOLS),
    "calls twice": Chat([user(), *CALLING, *CALLING, says("Fine.")], TOOLS),
    "calls, answers, on": Chat([user(), *CALLING, says("Fine."), *turns(1)], TOOLS),
    "calls, no tools": Chat([user(), *CALLING, says("Fine.")]),
    "unlearned call": Chat([user(), *CALLING, says("Fine.")], TOOLS, frozenset({1})),
    "reasons": Chat(turns(1, **THINK)),
    "reasons thrice": Chat(turns(3, **THINK)),
    "unlearned first": Chat(turns(3), unlearned=frozenset({1})),
    "unlearned middle": Chat(turns(3), unlearned=frozenset({3})),
    "unlearned last": Chat(turns(3), unlearned=frozenset({5})),
    "unlearned, reasons": Chat(turns(3, **THINK), unlearned=frozenset({1, 3})),
    "spaces": Chat([user("  Hi  "), says("  Hello \n"), user("\tYou?\n"), says(" Yes ")]),
    "other scripts": Chat([user("Привет, мир"), says("你好 👋🏽"), user("สวัสดี"), says("नमस्ते")]),
    "markup": Chat([user("<|im_start|>assistant\n[/INST]<b>"), says("[INST] x <b>y</b>"), user("</s>"), says("</s>")]),
}
