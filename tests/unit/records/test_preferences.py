"""Rows of preferences become pairs; what prefers nothing is left out and counted, what is no preference is refused."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleup.config.schema import DataConfig
from scaleup.errors import ScaleupError
from scaleup.records.examples import format_problems
from scaleup.records.preferences import Preference, preference_maker

PAIR = {"prompt": "Q: {q}", "chosen": "{good}", "rejected": "{bad}"}
RANKED = {"prompt": "{q}", "completions": "answers", "ranks": "places"}
RATED = {"completions": "answers", "ratings": "stars"}


def config(**keys):
    return DataConfig.model_validate({"train": "x.jsonl", **keys})


def made(values, **keys):
    data = config(**keys)
    return preference_maker(data, data.train[0])(values, 0)


def refusal(values, **keys):
    with pytest.raises(ScaleupError) as caught:
        made(values, **keys)
    return [f"{problem.where} {problem.what}" for problem in caught.value.problems]


def test_a_pair():
    found = made({"q": "why?", "good": "so", "bad": "no", "by": 2}, **PAIR, margin="by")
    assert found.pairs == [Preference("Q: why?", "so", "no", 2.0)]
    assert not found.left_out
    without = made({"good": "so", "bad": "no"}, chosen="{good}", rejected="{bad}")
    assert without.pairs == [Preference("", "so", "no", 0.0)]


def test_a_pair_of_equals_is_left_out():
    found = made({"q": "?", "good": "so", "bad": "so"}, **PAIR)
    assert (found.pairs, found.left_out) == ([], Counter(equal=1))


def test_what_is_no_pair_is_refused():
    assert refusal({"q": "?", "good": "so", "bad": " "}, **PAIR) == ["rejected is empty"]
    assert refusal({"q": "?", "good": "so", "bad": "no", "by": "2"}, **PAIR, margin="by") == [
        "by holds a str, not a number"
    ]


def test_a_ranking_makes_all_pairs():
    values = {"q": "?", "answers": ["c", "a", "b"], "places": [3, 1, 2]}
    found = made(values, **RANKED)
    assert {(pair.chosen, pair.rejected) for pair in found.pairs} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert {pair.prompt for pair in found.pairs} == {"?"}
    assert {pair.margin for pair in found.pairs} == {0.0}


def test_ratings_are_best_when_high_and_their_difference_is_the_margin():
    values = {"answers": ["bad", "good"], "stars": [1.5, 4]}
    assert made(values, **RATED).pairs == [Preference("", "good", "bad", 0.0)]
    assert made(values, **RATED, margin="stars").pairs == [Preference("", "good", "bad", 2.5)]


def test_ties_equals_and_what_is_missing_are_counted():
    values = {"answers": ["a", "b", "a", "", None, "c"], "stars": [1, 1, 2, 3, 3, None]}
    found = made(values, **RATED)
    assert [(pair.chosen, pair.rejected) for pair in found.pairs] == [("a", "b")]
    assert found.left_out == Counter(tied=1, equal=1, empty=12)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=7))
def test_every_pair_is_there_or_counted(ranked):
    answers, stars = [text for text, _ in ranked], [star for _, star in ranked]
    found = made({"answers": answers, "stars": stars}, **RATED)
    assert len(found.pairs) + sum(found.left_out.values()) == len(ranked) * (len(ranked) - 1) // 2
    worth = {(text, star) for text, star in ranked}
    for pair in found.pairs:
        assert any(
            (pair.chosen, one) in worth and (pair.rejected, other) in worth for one in range(4) for other in range(one)
        )


def test_what_is_no_ranking_is_refused():
    assert refusal({"answers": "ab", "stars": [1]}, **RATED) == ["answers holds a str, not a list"]
    assert refusal({"answers": ["a", "b"], "stars": [1]}, **RATED) == ["stars holds 1 numbers for 2 completions"]
    assert refusal({"answers": ["a", "b"], "stars": [1, "2"]}, **RATED) == ["stars holds '2', which is no number"]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"chosen": "{a}"}, "data.chosen: is set without rejected"),
        ({"rejected": "{a}"}, "data.rejected: is set without chosen"),
        ({"ranks": "r"}, "data.ranks: is set without completions"),
        ({"completions": "c"}, "data.completions: says nothing of which is better"),
        ({"completions": "c", "ranks": "r", "ratings": "s"}, "data.completions: has both ranks and ratings"),
        ({"completions": "c", "ranks": "r", "margin": "m"}, "data.margin: of a ranking can only be the difference"),
        ({"chosen": "{a}", "rejected": "{b}", "completions": "c"}, "data.completions: is set beside chosen, rejected"),
        ({"chosen": "{a}", "rejected": "{b}", "completion": "{c}"}, "data.completion: is set beside chosen, rejected"),
        ({"chosen": "always", "rejected": "{b}"}, "data.chosen: 'always' names no column"),
    ],
)
def test_formats_that_cannot_be(keys, line):
    assert line in "\n".join(map(str, format_problems(config(**keys), ["train"])))


def test_prompts_are_all_that_generation_needs():
    assert format_problems(config(**PAIR), ["train"], prompts_only=["train"]) == []
    (problem,) = format_problems(config(**RATED), ["train"], prompts_only=["train"])
    assert problem.what == "gives no prompts to generate from"
