"""Which class a row's label stands for, however its file spells it; and what the check before launch says of labels."""

import json

import pytest

from scaleup.config.data import DataConfig
from scaleup.data.labelled import LabelledEncoder
from scaleup.errors import ScaleupError
from scaleup.records.check import check_data, class_notes, class_problems
from scaleup.records.examples import labelled_maker
from scaleup.records.labels import Targets, class_number, names_of, problem_of

MOODS = ("negative", "positive")
TARGETS = Targets(MOODS)


@pytest.mark.parametrize(
    ("label", "names", "number"),
    [
        ("positive", MOODS, 1),
        (1, MOODS, 1),
        ("1", MOODS, 1),
        (" 1 ", MOODS, 1),
        ("1.0", MOODS, 1),
        ("0", MOODS, 0),
        ("2", MOODS, None),
        (2, MOODS, None),
        (-1, MOODS, None),
        ("-1", MOODS, None),
        ("0.5", MOODS, None),
        ("nan", MOODS, None),
        (10**400, MOODS, None),
        ("Positive", MOODS, None),
        (True, MOODS, 1),
        ("true", MOODS, 1),
        ("False", MOODS, 0),
        (True, ("True", "False"), 0),
        ("false", ("True", "False"), 1),
        (True, ("a", "b", "c"), None),
        ("1", ("1", "2", "3"), 0),  # a text is a name first
        (1, ("1", "2", "3"), 0),  # all names are numbers: a number is one of them, as text of the same file in CSV is
        ("0", ("1", "2", "3"), None),
        (" 1 ", ("1", "2", "3"), 0),
        (0, ("1", "2", "3"), None),
        (2, ("0", "1", "2"), 2),  # both are the same
        ("2.0", ("0", "1", "2"), 2),
        ("1", ("1", "0"), 0),
        (1, ("1", "0"), 0),
        (True, ("1", "0"), 0),
        ("true", ("1", "0"), 0),
        (1, ("True", "False"), None),
        ("1", ("True", "False"), None),
        (1, ("False", "True"), 1),
        (10, ("10", "20"), 0),
        (1, ("1", "two"), None),  # class 1, or the class of the name 1?
        ("1", ("1", "two"), 0),
        (0.5, ("0.5", "1"), 0),
        ("", MOODS, None),
        (None, MOODS, None),
    ],
)
def test_the_class_of_a_label(label, names, number):
    assert class_number(label, names) == number


@pytest.fixture
def rows(tmp_path):
    """Writes rows of `text` and `label` to a file, and returns its data section."""

    def write(name: str, labels: list) -> DataConfig:
        lines = [json.dumps({"text": "t", "label": label}) for label in labels]
        if name.endswith(".csv"):
            lines = ["text,label", *(f"t,{label}" for label in labels)]
        (tmp_path / name).write_text("\n".join(lines))
        return DataConfig(root=str(tmp_path), train=[{"path": name}], text="{text}", label="label")

    return write


def test_csv_and_json_give_the_same_classes(rows):
    class Reader:
        def ids(self, pairs):
            return [[1] for _ in pairs]

        def cut(self, ids):
            return ids

    def classes(name, labels):
        data = rows(name, labels)
        make = LabelledEncoder(Reader(), TARGETS, data).maker(data.train[0])
        from scaleup.data.sources import read_source

        return [make(values, 0)[0][1] for _, values in read_source(data, data.train[0], "train")]

    labels = [0, 1, "negative", True, 1.0]
    assert classes("a.csv", labels) == classes("a.jsonl", labels) == [0, 1, 0, 1, 1]


def test_labels_that_are_none_are_named_with_their_rows(rows, tmp_path):
    check = check_data(rows("a.csv", [0, 2, 1, "good", *["7"] * 9]), ["train"])
    assert check.problems == []
    assert list(map(str, class_problems(check, TARGETS))) == [
        *(
            f"{tmp_path}/a.csv:{line}: 'label' {label!r} is no class of the model -> use one of negative, positive, "
            "or its number"
            for line, label in ((3, "2"), (5, "good"), (6, "7"), (7, "7"), (8, "7"))
        ),
        f"{tmp_path}/a.csv: and 6 more rows fail",
    ]
    assert class_problems(check, Targets(("0", "1", "2", "7", "good"))) == []


def test_a_number_that_two_classes_are_meant_by_is_refused_by_name(rows, tmp_path):
    """In CSV, where all is text, it is the name; in JSON it was the number."""
    stars = Targets(("1", "two", "3"))
    assert class_problems(check_data(rows("a.csv", [1, 3]), ["train"]), stars) == []
    [one, three] = class_problems(check_data(rows("a.jsonl", [1, 3]), ["train"]), stars)
    assert str(one) == (
        f"{tmp_path}/a.jsonl:1: 'label' 1 may be a name or a number: the model's class 0 has the name '1' -> write the "
        "name as text, as the model has it: '1', 'two', '3'"
    )
    assert three.where == f"{tmp_path}/a.jsonl:2"
    [word] = class_problems(check_data(rows("b.jsonl", ["good"]), ["train"]), stars)
    assert word.what == "'label' 'good' is no class of the model"


def test_rows_without_a_label_hide_no_other_mistake(rows, tmp_path):
    check = check_data(rows("a.jsonl", ["", "good", None, 1]), ["train"])
    assert check.problems == []
    assert [(problem.where, problem.what) for problem in class_problems(check, TARGETS)] == [
        (f"{tmp_path}/a.jsonl:1", "'label' is empty"),
        (f"{tmp_path}/a.jsonl:2", "'label' 'good' is no class of the model"),
        (f"{tmp_path}/a.jsonl:3", "'label' is null"),
    ]


def test_a_label_is_told_of_by_its_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "t", "mood": ""}\n{"text": "t", "mood": "good"}')
    data = DataConfig(root=str(tmp_path), train=[{"path": "a.jsonl"}], text="{text}", label="mood")
    found = class_problems(check_data(data, ["train"]), TARGETS)
    assert [problem.what for problem in found] == ["'mood' is empty", "'mood' 'good' is no class of the model"]


def test_numbers_that_are_spelled_are_said(rows):
    check = check_data(rows("a.csv", [1, 0, 1]), ["train"])
    assert class_notes(check, TARGETS) == [
        "a.csv: labels that are no class's name are its number: '0' negative, '1' positive"
    ]
    assert (
        class_notes(check, Targets(("0", "1")))
        == []
        == class_notes(check_data(rows("a.jsonl", [1, 0]), ["train"]), TARGETS)
    )


@pytest.mark.parametrize(
    ("label", "part"),
    [({"a": 1}, "dict"), (float("nan"), "no finite"), ([{}], "list"), ([[1]], "list")],
)
def test_what_is_no_label(rows, label, part):
    data = rows("a.jsonl", [0])
    with pytest.raises(ScaleupError, match=part):
        labelled_maker(data, data.train[0])({"text": "t", "label": label}, 0)


@pytest.mark.parametrize(
    ("problem", "label", "target"),
    [
        ("multi_label", ("positive",), (0.0, 1.0)),
        ("multi_label", ("positive", 0, "positive"), (1.0, 1.0)),
        ("multi_label", '["negative"]', (1.0, 0.0)),
        ("multi_label", (), (0.0, 0.0)),
        ("multi_label", "positive", None),
        ("multi_label", ("positive", "good"), None),
        ("multi_label", None, None),
        ("regression", (1, "2.5"), (1.0, 2.5)),
        ("regression", "[1, 2]", (1.0, 2.0)),
        ("regression", (1,), None),
        ("regression", 1, None),
        ("regression", (1, True), None),
        ("single_label", ("positive",), None),
    ],
)
def test_what_is_learned_of_a_label(problem, label, target):
    assert Targets(MOODS, problem).of(label) == target


def test_a_number_is_learned_of_one_output():
    rating = Targets(("LABEL_0",), "regression")
    assert [rating.of(label) for label in (2, "2.5", -1.0, (3,), "good", None, True)] == [
        *((number,) for number in (2.0, 2.5, -1.0, 3.0)),
        *([None] * 3),
    ]
    assert rating.fault("label", "good").what == "'good' is not a number"


def test_faults_name_what_is_wrong():
    several = Targets(MOODS, "multi_label")
    assert several.fault("label", ("positive", "good")).what == "'good' is no class of the model"
    assert several.fault("label", "positive").what == "'positive' is no list of labels"
    assert Targets(MOODS, "regression").fault("label", (1,)).what == "[1] is not a list of 2 numbers"


@pytest.mark.parametrize(
    ("labels", "problem", "names"),
    [
        ([1, 0, 1], "single_label", ("0", "1")),
        ([10, 9, "x"], "single_label", ("10", "9", "x")),
        ([5, "10", 9], "single_label", ("5", "9", "10")),
        ([True, False], "single_label", ("false", "true")),
        (["b", "a", None, ""], "single_label", ("a", "b")),
        ([1, 2.5], "regression", ("LABEL_0",)),
        (["1", "2.5"], "regression", ("LABEL_0",)),
        ([("b", "a"), ()], "multi_label", ("a", "b")),
        (['["b", "a"]', "[]"], "multi_label", ("a", "b")),
        ([("a",), "b"], "single_label", ("b",)),
        ([None], None, None),
    ],
)
def test_what_rows_say_of_a_new_head(labels, problem, names):
    assert problem_of(labels) == problem
    assert problem is None or names_of(labels, problem) == names
