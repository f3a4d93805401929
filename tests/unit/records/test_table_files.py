"""Reading tables: Parquet and Arrow files, and the folders that `datasets` saves."""

from pathlib import Path

import pytest

from scaleup.config.data import DataConfig, SourceConfig
from scaleup.errors import ScaleupError
from scaleup.records.check import check_data
from scaleup.records.formats import data_files, local_path, read_rows


def read(path: Path):
    """The rows as (place, values) and the problems as (place, what)."""
    problems = []
    rows = list(read_rows(path, problems.append))
    place = len(str(path))
    return [(row.where[place:], row.values) for row in rows], [(p.where[place:], p.what) for p in problems]


def test_parquet_rows_across_batches(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": f"row {number}", "tags": ["x"] * (number % 3)} for number in range(2500)]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found, problems = read(path)
    assert [values for _, values in found] == rows and not problems
    assert found[0][0] == ":row 1" and found[-1][0] == ":row 2500"


def test_a_parquet_file_that_was_cut_is_reported(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"a": list(range(1000))}), path)
    path.write_bytes(path.read_bytes()[:-100])
    assert len(read(path)[1]) == 1


def test_nested_columns_and_nulls_of_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [
        {"messages": [{"role": "user", "content": "Hi", "weight": None}], "at": {"x": 1.5}, "tag": None},
        {"messages": None, "at": {"x": None}, "tag": "é"},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [values for _, values in read(tmp_path / "a.parquet")[0]] == rows


ROWS = [{"a": f"row {number}", "label": number % 2, "of": [{"k": number}]} for number in range(2500)]


@pytest.fixture
def saved(tmp_path):
    """A folder that `Dataset.save_to_disk` wrote, in two files, and one of a DatasetDict."""
    import datasets

    datasets.disable_progress_bars()
    train = datasets.Dataset.from_list(ROWS)
    train.save_to_disk(tmp_path / "saved", num_shards=2)
    both = datasets.DatasetDict({"train": train, "test": train.select(range(7, 3, -1))})
    both.save_to_disk(tmp_path / "both")
    return tmp_path


def test_folders_that_datasets_saved(saved):
    assert len(data_files(saved / "saved")) == 2
    assert [row.values for row in read_rows(saved / "saved")] == ROWS
    assert [row.values for row in read_rows(data_files(saved / "saved")[1])] == ROWS[1250:]
    data = DataConfig(root=str(saved))
    for source, split, rows in (
        (SourceConfig(path="both"), "train", ROWS),
        (SourceConfig(path="both"), "test", ROWS[7:3:-1]),
        (SourceConfig(path="both", split="test"), "train", ROWS[7:3:-1]),
    ):
        assert [row.values for row in read_rows(local_path(data, source, split))] == rows
    with pytest.raises(ScaleupError, match="its splits are train, test"):
        data_files(local_path(data, SourceConfig(path="both"), "validation"))
    with pytest.raises(ScaleupError, match="holds the splits train, test -> name the folder of one"):
        data_files(saved / "both")


def test_keys_of_hub_names_are_refused_beside_files(saved):
    (saved / "a.jsonl").write_text('{"a": "x"}')
    train = [
        {"path": "both", "split": "test"},
        {"path": "both", "name": "x"},
        {"path": "a.jsonl", "split": "train"},
        {"path": "both/train", "split": "test"},
    ]
    found = check_data(DataConfig(root=str(saved), text="{a}", train=train), ["train"])
    assert [problem.where for problem in found.problems] == [
        "data.train.1.name",
        "data.train.2.split",
        "data.train.3.split",
    ]
    assert [each.rows for each in found.sources["train"]] == [4, 2500, 1, 2500]


def test_a_saved_dataset_that_is_damaged_is_named(saved):
    first, second = data_files(saved / "saved")
    second.write_bytes(second.read_bytes()[:2000])
    where, what = read(saved / "saved")[1][0]
    assert where.startswith(f"/{second.name}") and "cannot be read" in what
    first.unlink()
    assert read(saved / "saved")[1][0][0] == f"/{first.name}"
    (saved / "saved" / "state.json").write_text("{}")
    with pytest.raises(ScaleupError, match=r"state\.json: does not say which files"):
        data_files(saved / "saved")


def test_what_datasets_writes_beside_rows_is_no_row(tmp_path):
    for name in ("dataset_info.json", "a.arrow"):
        (tmp_path / name).touch()
    assert [file.name for file in data_files(tmp_path)] == ["a.arrow"]


def test_an_arrow_file_of_the_other_format(tmp_path):
    import pyarrow

    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table)
    assert [values for _, values in read(tmp_path / "a.arrow")[0]] == ROWS


def test_a_value_that_python_does_not_hold_is_a_mistake_where_it_is_used(tmp_path):
    import pyarrow
    from pyarrow import parquet

    days = pyarrow.array([0, 10**7, 1], pyarrow.date32())
    parquet.write_table(pyarrow.table({"text": ["a", "b", "c"], "day": days}), tmp_path / "a.parquet")
    data = DataConfig(root=str(tmp_path), train=[{"path": "a.parquet"}], text="{text}")
    found = check_data(data, ["train"])
    assert found.problems == [] and found.sources["train"][0].rows == 3
    problems = check_data(data.model_copy(update={"text": "{day}"}), ["train"]).problems
    assert [problem.where.removeprefix(f"{tmp_path}/") for problem in problems] == [
        f"a.parquet:row {n}" for n in (1, 2, 3)
    ]
    assert problems[1].what == "'day' holds a date32[day] that Python cannot: date value out of range"


def test_maps_are_mappings(tmp_path):
    import pyarrow
    from pyarrow import parquet

    kind = pyarrow.map_(pyarrow.string(), pyarrow.string())
    turns = [[("role", "user"), ("content", "Hi")], [("role", "assistant"), ("content", "Yes")]]
    table = pyarrow.table(
        {"messages": pyarrow.array([turns], pyarrow.list_(kind)), "m": pyarrow.array([turns[0]], kind)}
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    data = DataConfig(root=str(tmp_path), train=[{"path": "a.parquet"}], messages="messages")
    assert check_data(data, ["train"]).problems == []
    [problem] = check_data(data.model_copy(update={"messages": "m"}), ["train"]).problems
    assert problem.what == "'m' holds a dict, not a list of messages"
