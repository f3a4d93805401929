"""The reward functions that need not be written, beside TRL's where it has them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards import accuracy_reward, get_repetition_penalty_reward, think_format_reward

from scaleup.rl.rewards import ready

TEXTS = ["The answer is 42.", "", "No."]


def as_messages(texts: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_length_is_the_distance_to_a_target() -> None:
    ids = [[1, 2, 3], [], [1] * 10]
    assert ready.length()(ids) == [-3.0, 0.0, -10.0]
    assert ready.length(target=4)(ids) == [-1.0, -4.0, -6.0]


PARTS = st.lists(st.sampled_from(["<think>", "</think>", "\n", "a"]), max_size=6).map("".join)


@given(st.lists(PARTS, min_size=1, max_size=4))
def test_format_is_trls(texts: list[str]) -> None:
    expected = think_format_reward(as_messages(texts))
    assert ready.format()(texts) == ready.format()(as_messages(texts)) == expected


@given(st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=4), st.integers(1, 4), st.floats(-2, 0))
def test_repetition_is_trls(ids: list[list[int]], ngram_size: int, max_penalty: float) -> None:
    expected = get_repetition_penalty_reward(ngram_size, max_penalty)(ids)
    assert ready.repetition(ngram_size, max_penalty)(ids) == pytest.approx(expected)


def test_repetition_is_a_penalty() -> None:
    for arguments in ({"max_penalty": 0.5}, {"ngram_size": 0}):
        with pytest.raises(ValueError, match="at least 1, and max_penalty at most 0"):
            ready.repetition(**arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"pattern": r"\d+"}, [1.0, 0.0, 0.0]),
        ({"pattern": r"\w+\.", "full": True}, [0.0, 0.0, 1.0]),
        ({"pattern": "^$"}, [0.0, 1.0, 0.0]),
    ],
)
def test_regex(arguments: dict[str, Any], expected: list[float]) -> None:
    assert ready.regex(**arguments)(TEXTS) == ready.regex(**arguments)(as_messages(TEXTS)) == expected


def test_contains_a_text_or_the_value_of_a_column() -> None:
    assert ready.contains(text="answer")(TEXTS) == [1.0, 0.0, 0.0]
    assert ready.contains(text="NO")(TEXTS) == [0.0, 0.0, 0.0]
    assert ready.contains(text="NO", ignore_case=True)(as_messages(TEXTS)) == [0.0, 0.0, 1.0]
    assert ready.contains()(TEXTS, answer=[42, 42, 42], prompts=TEXTS) == [1.0, 0.0, 0.0]
    assert ready.contains(column="text")(TEXTS, text=["x", "", "No"]) == [0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="the rows have no column answer; they have prompts, gold"):
        ready.contains()(TEXTS, prompts=TEXTS, gold=TEXTS)


MATHS = [
    (r"So it is \boxed{\frac{1}{3}}", r"\frac{1}{3}"),
    (r"So it is \boxed{\frac{1}{2}}", r"\frac{1}{3}"),
    (r"$x = 0.5$", r"$\frac{1}{2}$"),
    ("I do not know.", "$7$"),
    (r"\boxed{7 \text{ cm}}", "$7$"),
]


def test_math_is_trls() -> None:
    pytest.importorskip("math_verify", reason="the extra `math` is not installed: make setup does it")
    texts, solutions = [list(part) for part in zip(*MATHS, strict=True)]
    expected = accuracy_reward(as_messages(texts), solutions)
    assert ready.math()(texts, solution=solutions) == expected
    assert expected[:2] == [1.0, 0.0]
    assert ready.math(column="gold")(as_messages(texts), gold=solutions) == expected
    with pytest.raises(ValueError, match="solution '' holds no answer that math-verify can read"):
        ready.math()(["1"], solution=[""])
