"""Templates over columns, and the library of named ones."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleup.errors import ScaleupError
from scaleup.records.instructions import INSTRUCTIONS, phrasing_of
from scaleup.records.template import MissingColumn, Template


@pytest.mark.parametrize(
    ("text", "values", "rendered"),
    [
        ("{a} and {b}{a}", {"a": "x", "b": 2}, "x and 2x"),
        ("{{{a}}} {{}}", {"a": True}, "{True} {}"),
        ("{Review Text}", {"Review Text": 1.5}, "1.5"),
        ("{a}", {"a": "{b}"}, "{b}"),
        ("{a}", {"a": ""}, ""),
    ],
)
def test_render(text, values, rendered):
    assert Template(text).render(values) == rendered


def test_columns_are_named_once_and_in_order():
    template = Template("{b} {a} {b}", {"a": "c"})
    assert (template.fields, template.columns) == (("b", "a"), ("b", "c"))
    assert template.render({"b": 1, "c": 2}) == "1 2 1"


@pytest.mark.parametrize(
    "text", ["{", "}", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>5}", "{a{b}}", "{ }", '{"a": {b}}']
)
def test_malformed_templates_are_refused(text):
    with pytest.raises(ScaleupError):
        Template(text)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (None, "null"),
        ([1], "list"),
        ({}, "dict"),
        (b"x", "bytes"),
        (float("nan"), "no finite"),
        (float("-inf"), "no finite"),
    ],
)
def test_values_that_are_no_text_are_refused(value, part):
    with pytest.raises(ScaleupError) as raised:
        Template("{a}{b}").render({"a": "x", "b": value})
    assert [problem.where for problem in raised.value.problems] == ["b"] and part in str(raised.value)


def test_missing_columns_are_all_named_with_the_nearest():
    with pytest.raises(ScaleupError) as raised:
        Template("{text} {label} {text}").render({"txt": "x", "other": 1})
    first, second = raised.value.problems
    assert (first.where, first.remedy) == ("text", "did you mean 'txt'?")
    assert (second.where, second.remedy) == ("label", "it has txt, other")
    assert isinstance(first, MissingColumn)


@given(
    st.lists(st.text() | st.tuples(st.sampled_from("abc")), max_size=8),
    st.dictionaries(st.sampled_from("abc"), st.text()),
)
def test_escaped_text_and_values_come_out_as_they_went_in(parts, values):
    values = {"a": "1", "b": "{a}", "c": "}{", **values}
    text = "".join(
        part.replace("{", "{{").replace("}", "}}") if isinstance(part, str) else f"{{{part[0]}}}" for part in parts
    )
    expected = "".join(part if isinstance(part, str) else values[part[0]] for part in parts)
    assert Template(text).render(values) == expected


def test_the_library_has_its_tasks():
    assert {"summarize", "sentiment", "translate", "question_answering"} <= set(INSTRUCTIONS)
    assert {"closed_book_qa", "paraphrase", "natural_language_inference"} <= set(INSTRUCTIONS)


def test_flan_asks_in_its_own_words():
    asked = {"text": "So dull.", "answer": "negative"}
    assert INSTRUCTIONS["imdb_reviews"].columns == ("text", "answer")
    prompt, completion = INSTRUCTIONS["imdb_reviews"].phrasings[0]
    expected = "So dull.\nWhat is the sentiment of this review?\nOPTIONS:\n- negative\n- positive"
    assert (Template(prompt).render(asked), Template(completion).render(asked)) == (expected, " negative")


@pytest.mark.parametrize("instruction", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
def test_every_phrasing_uses_every_column_and_reads_naturally(instruction):
    assert len(set(instruction.phrasings)) >= 5
    for prompt, completion in instruction.phrasings:
        assert {*Template(prompt).fields, *Template(completion).fields} == set(instruction.columns)
        assert not set(Template(prompt).fields) & set(Template(completion).fields)
        assert completion.startswith(" ") != prompt[-1].isspace()
        assert completion == completion.rstrip()


@pytest.mark.parametrize("num_phrasings", [5, 6, 8])
def test_neighbours_differ_in_phrasing_and_no_pattern_of_rows_predicts_it(num_phrasings):
    chosen = [phrasing_of(index, num_phrasings) for index in range(6000)]
    assert all(one != other for one, other in pairwise(chosen))
    for step in (1, 2, 3):
        part = chosen[::step]
        share = [part.count(phrasing) / len(part) for phrasing in range(num_phrasings)]
        assert max(share) < 1.25 / num_phrasings and min(share) > 0.75 / num_phrasings


def test_the_phrasing_of_a_row_never_changes():
    assert [phrasing_of(index, 5) for index in range(8)] == [4, 3, 2, 1, 3, 2, 0, 2]


def test_integers_of_any_size_are_written_out():
    assert Template("{a}").render({"a": 10**400}) == str(10**400)
