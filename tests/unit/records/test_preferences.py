"""Rows of preferences become pairs; what prefers nothing is left out and counted, what is no preference is refused."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleup.config.data import DataConfig
from scaleup.config.stages.judge import JudgedData
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat
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
    for by in ("two", "nan", "1e400", "", "0x2", "1,5"):
        assert refusal({"q": "?", "good": "so", "bad": "no", "by": by}, **PAIR, margin="by") == [
            "by holds a str, not a number"
        ]
    for by in (float("inf"), float("nan")):
        assert "no finite number" in refusal({"q": "?", "good": "so", "bad": "no", "by": by}, **PAIR, margin="by")[0]


def test_text_that_spells_numbers_and_lists_is_as_good_as_they():
    """As CSV has them."""
    pair = {"q": "?", "good": "so", "bad": "no"}
    assert made({**pair, "by": " 1.5e0"}, **PAIR, margin="by") == made({**pair, "by": 1.5}, **PAIR, margin="by")
    ranking = {"answers": ["bad", "good", None, "fair"], "stars": [1, 4.5, 2, 2]}
    spelled = {"answers": '["bad", "good", null, "fair"]', "stars": '[1, "4.5", 2, 2]'}
    assert made(spelled, **RATED, margin="stars") == made(ranking, **RATED, margin="stars")


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
    for text in ("ab", "", '{"a": 1}', "['a', 'b']", "3"):
        assert refusal({"answers": text, "stars": [1]}, **RATED) == ["answers holds a str, not a list or its JSON"]
    assert refusal({"answers": 3, "stars": [1]}, **RATED) == ["answers holds a int, not a list"]
    assert refusal({"answers": ["a", "b"], "stars": [1]}, **RATED) == ["stars holds 1 numbers for 2 completions"]
    for star in ("two", True, float("inf"), 10**400):
        lines = refusal({"answers": ["a", "b"], "stars": [1, star]}, **RATED)
        assert lines == [f"stars holds {star!r}, which is no number"]


SIDES = {"prompt": "{p}", "chosen": "{good}", "rejected": "{bad}"}
IMPLICIT = {"chosen": "{good}", "rejected": "{bad}"}
TOOLS = [{"name": "f"}]


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("keys", "row"),
    [
        (SIDES, {"p": [user("hi")], "good": [says("a")], "bad": [says("b")]}),
        (SIDES, {"p": "hi", "good": [says("a")], "bad": [says("b")]}),
        (SIDES, {"p": [user("hi")], "good": "a", "bad": "b"}),
        (SIDES, {"p": "hi", "good": [user("hi"), says("a")], "bad": [user("hi"), says("b")]}),
        (SIDES, {"p": [], "good": [user("hi"), says("a")], "bad": [user("hi"), says("b")]}),
        (IMPLICIT, {"good": [user("hi"), says("a")], "bad": [user("hi"), says("b")]}),
    ],
)
def test_a_pair_of_messages(keys, row):
    expected = Preference(Chat([user("hi")], TOOLS), [says("a")], [says("b")], 2.0)
    assert made({**row, "tools": TOOLS, "by": 2}, **keys, margin="by").pairs == [expected]


def test_the_turns_that_both_begin_with_are_the_prompt():
    start = [user("hi"), says("a"), user("so?")]
    good, bad = [*start, says("b"), user("and?"), says("c")], [*start, says("d")]
    assert made({"good": good, "bad": bad}, **IMPLICIT).pairs == [Preference(Chat(start), good[3:], bad[3:])]
    assert made({"good": [says("a")], "bad": [says("b")]}, **IMPLICIT).pairs == [
        Preference(Chat([]), [says("a")], [says("b")])
    ]


def test_equal_conversations_are_left_out():
    found = made({"good": [user("hi"), says("a")], "bad": [user("hi"), says("a")]}, **IMPLICIT)
    assert (found.pairs, found.left_out) == ([], Counter(equal=1))


@pytest.mark.parametrize(
    ("good", "bad", "lines"),
    [
        ([user("a"), says("x")], [user("b"), says("y")], ["rejected[0] has another prompt than chosen"]),
        ([user("a"), says("x")], [user("a"), user("b")], ["rejected[1] has another prompt than chosen"]),
        ([user("a"), says("x")], [user("a")], ["chosen[1] goes on where rejected has ended"]),
        ([user("a"), says(" ")], [user("a"), says("x")], ["chosen is empty"]),
        ([says("x")], "y", ["chosen, rejected holds text beside messages"]),
        ([1], [{"role": "user"}], ["good[0] is no message", "bad[0].content is no text"]),
        (
            [user("a"), says("x")],
            [user("a"), {**says("y"), "weight": 0}],
            ["rejected[1] has weight 0 or train false, which means nothing in a preference"],
        ),
    ],
)
def test_messages_that_are_no_pair_are_refused(good, bad, lines):
    assert refusal({"good": good, "bad": bad}, **IMPLICIT) == lines


def test_an_answer_must_follow_the_prompt_that_is_given():
    row = {"p": "hi", "good": [user("hi"), says("a")], "bad": [says("b")]}
    assert refusal(row, **SIDES) == ["chosen goes on with a message of role user"]


def test_a_ranking_of_messages():
    answers = [[says("c")], None, [says("a")], [], [says(" ")]]
    values = {"q": [user("hi")], "answers": answers, "places": [2, 1, 1, 3, 3], "tools": TOOLS}
    found = made(values, **RANKED)
    assert found.pairs == [Preference(Chat([user("hi")], TOOLS), [says("a")], [says("c")])]
    assert found.left_out == Counter(empty=9)
    texts = made({"q": [user("hi")], "answers": ["c", "a"], "places": [2, 1]}, **RANKED)
    assert texts.pairs == [Preference(Chat([user("hi")]), [says("a")], [says("c")])]
    whole = made({"answers": [[user("hi"), says(text)] for text in "ab"], "stars": [1, 3]}, **RATED, margin="stars")
    assert whole.pairs == [Preference(Chat([user("hi")]), [says("b")], [says("a")], 2.0)]


def test_a_ranking_of_messages_that_is_none_is_refused():
    values = {"q": [user("hi")], "answers": [[{"role": "x"}], [3]], "places": [2, 1]}
    assert refusal(values, **RANKED) == [
        "answers[0][0].role is 'x'",
        "answers[0][0].content is no text",
        "answers[1][0] is no message",
    ]
    values["answers"] = [[says("a")], "b"]
    assert refusal(values, **RANKED) == ["answers holds text beside messages"]
    values["answers"] = [[says("a")], [user("b"), says("b")]]
    assert refusal(values, **RANKED) == ["answers[1] goes on with a message of role user"]


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


def test_completions_that_a_judge_is_to_compare():
    data = DataConfig.model_validate({"train": "x.jsonl", "prompt": "{q}", "completions": "answers"})
    assert [problem.where for problem in format_problems(data, ["train"])] == ["data.completions"]
    judged = JudgedData.model_validate(data.model_dump(exclude_none=True))
    assert format_problems(judged, ["train"]) == []
    found = preference_maker(judged, judged.train[0])({"q": "?", "answers": ["a", "b", "a", " ", "c"]}, 0)
    assert [(pair.chosen, pair.rejected) for pair in found.pairs] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "a"),
        ("b", "c"),
        ("a", "c"),
    ]
    assert found.left_out == Counter({"equal": 1, "empty": 4})
