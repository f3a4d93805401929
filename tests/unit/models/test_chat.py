"""A conversation shows answers as they are written, remembers what it has shown, and stops where it is told to."""

from __future__ import annotations

from typing import Any

import pytest

from scaleup.config.stages.generate import GenerateConfig
from scaleup.data.tokenization import Encoder
from scaleup.models.chat import Answer, Conversation, converse
from tests.unit.data import tiny


def conversation(name: str = "llama", max_length: int = 256, **generation: Any) -> Conversation:
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, **generation}
    raw = {"stage": "generate", "name": "x", "model": {"path": f"builtin:tiny-{name}"}, "generation": settings}
    encoder = Encoder(tiny.tokenizer(name), tiny.facts(name).task, tiny.data_config(max_length=max_length))
    return Conversation(tiny.model(name).eval(), encoder, GenerateConfig.model_validate(raw))


def said(talk: Conversation, text: str) -> str:
    shown: list[str] = []
    talk.answer(text, shown.append)
    return "".join(shown)


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        (["one ", "two"], [], "one two"),
        (["one E", "N", "D two ", "three"], ["END"], "one "),
        (["one E", "N", "OUGH"], ["END"], "one ENOUGH"),
        (["a\n", "b"], ["\n"], "a"),
        (["ends in E"], ["END"], "ends in E"),
    ],
)
def test_what_may_begin_a_stop_waits(pieces: list[str], stop: list[str], expected: str) -> None:
    shown: list[str] = []
    answer = Answer(tiny.tokenizer("llama"), stop, shown.append)
    for number, piece in enumerate(pieces):
        answer.on_finalized_text(piece, stream_end=number == len(pieces) - 1)
    assert "".join(shown) == answer.text == expected


def test_a_conversation_goes_on_and_is_forgotten() -> None:
    talk = conversation()
    first = said(talk, "hello")
    assert [message["role"] for message in talk.messages] == ["user", "assistant"]
    assert talk.messages[1]["content"] == first
    assert said(talk, "hello") != first, "it has read what came before"
    talk.messages = []
    assert said(talk, "hello") == first


def test_an_interrupted_answer_is_remembered_as_far_as_it_was_shown() -> None:
    talk, shown = conversation(max_new_tokens=60, min_new_tokens=60), list[str]()

    def interrupt(text: str) -> None:
        shown.append(text)
        if text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.answer("hello", interrupt)
    assert talk.messages[1]["content"] == "".join(shown)
    assert said(talk, "again")


def test_what_does_not_fit_is_told() -> None:
    talk = conversation(max_length=24)
    assert not talk.answer("a text that is longer than twenty-four tokens", lambda text: None)
    assert conversation().answer("hello", lambda text: None)


@pytest.mark.parametrize("name", ["t5", "gpt2"])
def test_without_a_template_each_text_is_continued_by_itself(name: str) -> None:
    talk = conversation(name)
    if talk.is_chat:
        talk.encoder.tokenizer.chat_template = None
    assert said(talk, "one two") == said(talk, "one two")
    assert not talk.messages


def test_lines_are_read_until_the_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[Any] = ["hello", KeyboardInterrupt, "", "/reset", "/exit", "never"]

    def read(prompt: str) -> str:
        line = lines.pop(0)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)
    talk = conversation()
    converse(talk, is_terminal=True)
    assert lines == ["never"] and not talk.messages
    assert "/reset forgets" in capsys.readouterr().out
    lines[:] = [EOFError]
    converse(talk, is_terminal=False)
