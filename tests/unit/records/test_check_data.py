"""The look at the data before launch."""

import cProfile
import json
import pstats
import subprocess
import sys

import pytest

from scaleup.config.data import DataConfig
from scaleup.records.check import SourceSummary, check_data

GOOD = {"text": "fine", "label": "good"}
FORMAT = {"prompt": "{text}:", "completion": " {label}"}
ALL = ["train", "validation", "test"]


@pytest.fixture
def check(tmp_path):
    def run(rows=None, splits=ALL, max_rows=None, prompts_only=(), **keys):
        if rows is not None:
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (tmp_path / "rows.jsonl").write_text("\n".join(lines))
            keys.setdefault("train", "rows.jsonl")
        if not {"text", "template", "messages", "prompt"} & set(keys):
            keys |= FORMAT
        data = DataConfig.model_validate({"root": str(tmp_path), **keys})
        return check_data(data, splits, max_rows, prompts_only)

    return run


def lines(result, folder):
    return [str(problem).replace(f"{folder}/", "") for problem in result.problems]


def test_good_data_is_counted(check):
    result = check([GOOD] * 3, test="imdb")
    assert result.problems == []
    assert result.sources == {
        "train": [SourceSummary("rows.jsonl", 3)],
        "validation": [],
        "test": [SourceSummary("imdb", None)],
    }


def test_failing_rows_and_bad_lines_are_listed_up_to_five_and_then_counted(check, tmp_path):
    bad = [{"text": None, "label": "x"}, "{", {"text": "x", "label": " "}, {"text": "x"}, "3", {"text": []}, {}]
    found = lines(check([GOOD, *bad, GOOD]), tmp_path)
    assert [line.partition(" ")[0] for line in found[:5]] == [f"rows.jsonl:{number}:" for number in range(2, 7)]
    assert found[0] == "rows.jsonl:2: 'text' is null -> give it a value or drop the row"
    assert found[5:] == ["rows.jsonl: and 2 more rows fail"]


def test_five_failing_rows_need_no_count(check):
    assert len(check([GOOD] + [{"text": ""}] * 5).problems) == 5


def test_a_column_of_no_row_is_one_problem_that_hides_no_other(check, tmp_path):
    rows = [{"text": "x", "lable": "y"}, {"text": None, "lable": "y"}, {"lable": "y"}]
    found = lines(check(rows * 20), tmp_path)
    assert found[0] == "rows.jsonl: no row has the column 'label' -> did you mean 'lable'?"
    assert found[1].startswith("rows.jsonl:2: 'text' is null ->")
    assert found[2].startswith("rows.jsonl:3: 'text' is no column of this row ->")
    assert found[6:] == ["rows.jsonl: and 35 more rows fail"]


def test_a_column_that_appears_late_was_missing_from_rows(check, tmp_path):
    found = lines(check([{"text": "x"}] * 3 + [GOOD]), tmp_path)
    assert [line.partition(": ")[0] for line in found] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("rwos.jsonl", "did you mean 'rows.jsonl'?"),
        ("./nothing", "does not exist"),
        ("folder", "without data files"),
        ("empty.csv", "holds no rows"),
    ],
)
def test_sources_that_are_not_there_or_empty(check, tmp_path, path, part):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.csv").write_text("text,label\n")
    (problem,) = check([GOOD], train=["rows.jsonl", path]).problems
    assert problem.where == "data.train.1.path" and part in str(problem)


def test_every_source_is_reported(check, tmp_path):
    found = check([GOOD, "{"], train=["rows.jsonl", "a.jsonl"], validation="b.jsonl", test="c.jsonl").problems
    assert [problem.where for problem in found] == [
        f"{tmp_path}/rows.jsonl:2",
        "data.train.1.path",
        "data.validation.0.path",
        "data.test.0.path",
    ]


def test_a_file_that_cannot_be_opened_is_reported(check, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "rows.jsonl").write_text("")
    monkeypatch.setattr("pathlib.Path.open", refuse)
    (problem,) = check(train="rows.jsonl").problems
    assert "Permission denied" in problem.what


def test_rows_are_numbered_over_the_files_of_a_folder(check, tmp_path):
    (tmp_path / "folder").mkdir()
    for name in "ab":
        (tmp_path / "folder" / f"{name}.jsonl").write_text(f"{json.dumps(GOOD)}\n" * 2)
    result = check(train="folder")
    assert result.problems == [] and result.sources["train"] == [SourceSummary("folder", 4)]


def test_streams_are_looked_at_in_part(check):
    assert check([GOOD] * 10_000 + ["{"], streaming=True).sources["train"][0].rows is None
    assert check([GOOD, GOOD, "{"], streaming=True, max_rows=2).problems == []
    assert len(check(["{", GOOD, "{"], streaming=True, max_rows=2).problems) == 1
    assert len(check(["{"] * 3, streaming=True, max_rows=2).problems) == 2
    whole = check([GOOD, GOOD], streaming=True, max_rows=2)
    assert whole.sources["train"][0].rows == 2


@pytest.mark.parametrize(
    ("train", "held_out", "leaks"),
    [
        ("a.jsonl", "a.jsonl", True),
        ("a.jsonl", "../{here}/link.jsonl", True),
        (".", "a.jsonl", True),
        ("a.jsonl", "b.jsonl", False),
        ("imdb", "imdb", False),
        ({"path": "imdb", "split": "train"}, {"path": "imdb", "split": "train"}, True),
        ({"path": "imdb", "split": "train"}, {"path": "imdb", "split": "test"}, False),
    ],
)
def test_training_data_that_is_measured_with_is_reported(check, tmp_path, train, held_out, leaks):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    if isinstance(held_out, str):
        held_out = held_out.format(here=tmp_path.name)
    for split in ("validation", "test"):
        found = check(train=train, **{split: held_out}).problems
        assert [problem.where for problem in found] == ([f"data.{split}.0.path"] if leaks else [])
        assert not leaks or "data.train.0" in found[0].what


def test_generation_needs_no_completion(check):
    rows = [{"text": "x"}]
    assert check(rows).problems != []
    assert check(rows, prompts_only=ALL).problems == []


def test_keys_that_only_a_template_may_know_are_counted_and_noted(check):
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    messages = [{**user, "foo": 1}, {**answer, "foo": 2, "bar": None, "name": "n"}]
    result = check([{"m": messages}, {"m": [user, {**answer, "z": 1}]}], messages="m")
    assert result.problems == [] and result.notes == [
        "data.train.0: 2 messages have the key 'foo', which only the chat template may read",
        "data.train.0: 1 message has the key 'z', which only the chat template may read",
    ]
    pair = {"text": [{**user, "foo": 1}], "a": [answer], "b": [{**answer, "content": "c"}]}
    result = check([pair], prompt="{text}", chosen="{a}", rejected="{b}")
    assert result.notes == ["data.train.0: 1 message has the key 'foo', which only the chat template may read"]


def test_nulls_that_a_template_would_show_are_noted(check):
    call = {"function": {"name": "f", "arguments": {"a": None}}}
    answer = {"role": "assistant", "content": None}
    tools = [{"name": "f", "parameters": {"a": {"type": "text", "unit": None}}}]
    rows = [{"m": [{**answer, "tool_calls": [call]}]}, {"m": [{**answer, "content": "b"}], "tools": tools}]
    good = {"m": [{**answer, "content": "b", "name": None}], "tools": None}
    assert check([good], messages="m").notes == []
    (note,) = check([*rows, good], messages="m").notes
    assert note.startswith("data.train.0: 2 rows have nulls in tools or their calls")


def test_tools_that_no_template_shows_are_noted(check):
    keys = {"prompt": "{p}", "completion": "{c}"}
    row = {"p": "a", "c": "b", "tools": [{"name": "f"}]}
    (note,) = check([row, {**row, "tools": None}], **keys).notes
    assert note == "data.train.0: 1 row has tools beside text, which no chat template shows: they are not read"
    assert check([{**row, "p": [{"role": "user", "content": "a"}]}], **keys).notes == []


def test_a_mistaken_format_leaves_the_lines_to_check(check):
    result = check([GOOD, "{"], template="summarise")
    assert len(result.problems) == 1 and "JSON" in result.problems[0].what


@pytest.mark.parametrize("row", [GOOD, {"text": "x", "lable": "y"}, "{"], ids=["good", "misnamed", "broken"])
def test_many_rows_take_little_work(check, row):
    """Counted, since a clock tells how busy the machine is: a hundred calls cost some ten microseconds."""
    rows = [{**row, "more": "word " * 40} if isinstance(row, dict) else row] * 2_000
    check(rows[:1])
    with cProfile.Profile() as profile:
        check(rows, template="sentiment")
    assert pstats.Stats(profile).total_calls < 100 * len(rows)  # 99 at most


def test_the_control_plane_imports_nothing_heavy():
    heavy = {"torch", "transformers", "datasets", "pyarrow", "numpy"}
    code = f"import sys, scaleup.records.check; sys.exit(str({heavy} & set(sys.modules) or '') or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
