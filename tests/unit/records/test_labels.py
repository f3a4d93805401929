"""Which class a row's label stands for, however its file spells it; and what the check before launch says of labels."""

import json

import pytest

from scaleup.config.schema import DataConfig
from scaleup.data.labelled import LabelledEncoder
from scaleup.errors import ScaleupError
from scaleup.records.check import check_data, class_notes, class_problems
from scaleup.records.examples import labelled_maker
from scaleup.records.labels import class_number

MOODS = ("negative", "positive")


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
        (1, ("1", "2", "3"), None),  # class 1, or the class of the name 1? A text of the same file in CSV is the latter
        ("0", ("1", "2", "3"), None),
        (" 1 ", ("1", "2", "3"), None),
        (0, ("1", "2", "3"), None),
        (2, ("0", "1", "2"), 2),  # both are the same
        ("2.0", ("0", "1", "2"), 2),
        ("1", ("1", "0"), 0),
        (1, ("1", "0"), None),
        (True, ("1", "0"), None),
        ("true", ("1", "0"), None),
        (1, ("True", "False"), None),
        ("1", ("True", "False"), None),
        (1, ("False", "True"), 1),
        (10, ("10", "20"), None),
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
        make = LabelledEncoder(Reader(), MOODS, data).maker(data.train[0])
        from scaleup.data.sources import read_source

        return [make(values, 0)[0][1] for _, values in read_source(data, data.train[0], "train")]

    labels = [0, 1, "negative", True, 1.0]
    assert classes("a.csv", labels) == classes("a.jsonl", labels) == [0, 1, 0, 1, 1]


def test_labels_that_are_none_are_named_with_their_rows(rows, tmp_path):
    check = check_data(rows("a.csv", [0, 2, 1, "good", *["7"] * 9]), ["train"])
    assert check.problems == []
    assert list(map(str, class_problems(check, MOODS))) == [
        *(
            f"{tmp_path}/a.csv:{line}: 'label' {label!r} is no class of the model -> use one of negative, positive, "
            "or its number"
            for line, label in ((3, "2"), (5, "good"), (6, "7"), (7, "7"), (8, "7"))
        ),
        f"{tmp_path}/a.csv: and 6 more rows fail",
    ]
    assert class_problems(check, ("0", "1", "2", "7", "good")) == []


def test_a_number_that_two_classes_are_meant_by_is_refused_by_name(rows, tmp_path):
    """In CSV, where all is text, it is the name; in JSON it was the number."""
    stars = ("1", "2", "3")
    assert class_problems(check_data(rows("a.csv", [1, 3]), ["train"]), stars) == []
    [one, three] = class_problems(check_data(rows("a.jsonl", [1, 3]), ["train"]), stars)
    assert str(one) == (
        f"{tmp_path}/a.jsonl:1: 'label' 1 may be a name or a number: the model's class 0 has the name '1' -> write the "
        "name as text, as the model has it: '1', '2', '3'"
    )
    assert three.where == f"{tmp_path}/a.jsonl:2"
    [word] = class_problems(check_data(rows("b.jsonl", ["good"]), ["train"]), stars)
    assert word.what == "'label' 'good' is no class of the model"


def test_rows_without_a_label_hide_no_other_mistake(rows, tmp_path):
    check = check_data(rows("a.jsonl", ["", "good", None, 1]), ["train"])
    assert check.problems == []
    assert [(problem.where, problem.what) for problem in class_problems(check, MOODS)] == [
        (f"{tmp_path}/a.jsonl:1", "'label' is empty"),
        (f"{tmp_path}/a.jsonl:2", "'label' 'good' is no class of the model"),
        (f"{tmp_path}/a.jsonl:3", "'label' is null"),
    ]


def test_a_label_is_told_of_by_its_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "t", "mood": ""}\n{"text": "t", "mood": "good"}')
    data = DataConfig(root=str(tmp_path), train=[{"path": "a.jsonl"}], text="{text}", label="mood")
    found = class_problems(check_data(data, ["train"]), MOODS)
    assert [problem.what for problem in found] == ["'mood' is empty", "'mood' 'good' is no class of the model"]


def test_numbers_that_are_spelled_are_said(rows):
    check = check_data(rows("a.csv", [1, 0, 1]), ["train"])
    assert class_notes(check, MOODS) == [
        "a.csv: labels that are no class's name are its number: '0' negative, '1' positive"
    ]
    assert class_notes(check, ("0", "1")) == [] == class_notes(check_data(rows("a.jsonl", [1, 0]), ["train"]), MOODS)


@pytest.mark.parametrize(
    ("label", "part"),
    [(1.5, "float"), (float("nan"), "no finite"), ([1], "list")],
)
def test_what_is_no_label(rows, label, part):
    data = rows("a.jsonl", [0])
    with pytest.raises(ScaleupError, match=part):
        labelled_maker(data, data.train[0])({"text": "t", "label": label}, 0)
