"""A file of principles becomes requests; what is wrong with it is told, all at once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat
from scaleup.records.constitution import DEFAULT, Constitution, Principle, read_constitution, said_in
from scaleup.records.preferences import Preference
from tests.conftest import REPOSITORY

KIND = Principle(name="kind", critique_request="What is rude?", revision_request="Be kind.", question="Kinder?")
ONE = Constitution(
    principles=[KIND],
    critique_template="{prompt}{response}|{critique_request}",
    revision_template="{prompt}{response}|{critique_request}|{critique}|{revision_request}",
    judge_template="{prompt}|{question}|{first}|{second}|",
)


def write(file: Path, **keys: object) -> str:
    file.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return str(file)


def refusal(path: str, use: str = "revise") -> list[str]:
    with pytest.raises(ScaleupError) as caught:
        read_constitution(path, use)  # type: ignore[arg-type]
    return [f"{problem.where} {problem.what}".replace(path, "F") for problem in caught.value.problems]


def test_requests_stand_behind_texts_as_they_are() -> None:
    assert ONE.critique("Q? ", "{a}", KIND) == "Q? {a}|What is rude?", "braces of an answer are no fields"
    assert ONE.revision("Q? ", "a", KIND, "b") == "Q? a|What is rude?|b|Be kind."
    assert ONE.questions(Preference("Q?", "x", "y"), KIND) == ("Q?|Kinder?|x|y|", "Q?|Kinder?|y|x|")


def test_requests_are_turns_of_a_conversation() -> None:
    chat = Chat([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], [{"name": "f"}])
    asked = ONE.revision(chat, "a", KIND, "b")
    assert isinstance(asked, Chat) and asked.tools == chat.tools
    assert [(turn["role"], turn["content"]) for turn in asked.messages] == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "What is rude?"),
        ("assistant", "b"),
        ("user", "Be kind."),
    ]
    critique = ONE.critique(chat, "a", KIND)
    assert isinstance(critique, Chat) and critique.messages == asked.messages[:4]
    pair = Preference(chat, [{"role": "assistant", "content": "x"}], [{"role": "assistant", "content": "y"}])
    assert ONE.questions(pair, KIND)[0] == "system: s\n\nuser: q|Kinder?|x|y|"
    assert said_in([{"role": "assistant", "content": "a"}, {"role": "tool", "content": "t"}]) == "a"


def test_principles_are_drawn_by_the_seed_and_all_of_them() -> None:
    drawn = [DEFAULT.drawn(0, row, 0).name for row in range(300)]
    assert drawn == [DEFAULT.drawn(0, row, 0).name for row in range(300)]
    assert all(70 < count < 130 for count in Counter(drawn).values()) and len(set(drawn)) == 3
    for other in (
        [DEFAULT.drawn(1, row, 0).name for row in range(300)],
        [DEFAULT.drawn(0, r, 1).name for r in range(300)],
    ):
        assert 60 < sum(one == two for one, two in zip(drawn, other, strict=True)) < 140


def test_the_example_and_the_default_serve_both_stages() -> None:
    file = str(REPOSITORY / "examples/constitution/principles.yaml")
    for use in ("revise", "judge"):
        assert read_constitution(None, use) is DEFAULT  # type: ignore[arg-type]
        assert len(read_constitution(file, use).principles) == 2  # type: ignore[arg-type]


def test_mistakes_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    assert refusal(str(file)) == ["F there is no such file of principles"]
    assert refusal(write(file, principles=[], option=1)) == [
        "F: principles [] list should have at least 1 item after validation, not 0",
        "F: option unknown key",
    ]
    half = [{"name": "a", "question": "better?"}, KIND.model_dump()]
    assert refusal(write(file, principles=half, critique_template="{answer}", revision_template="{0}")) == [
        "F: principles.0.critique_request is not set, and stage revise asks it",
        "F: principles.0.revision_request is not set, and stage revise asks it",
        "F: critique_template has a field 'answer'",
        "F: critique_template does not show {response}",
        "F: critique_template does not show {critique_request}",
        "F: revision_template '{0}' has a field without a column's name",
    ]
    assert read_constitution(str(file), "judge").principles[0].name == "a", "which asks none of these"
    write(file, principles=half, judge_template="{first}{second}", options=["A", "A"])
    assert refusal(str(file), "judge") == ["F: judge_template does not show {question}", "F: options are the same text"]
