"""Reading rows: each format, where each row stands, and every way a file can be broken."""

import bz2
import csv
import gzip
import json
import lzma
import math
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaleup.config.data import DataConfig, SourceConfig
from scaleup.errors import ScaleupError
from scaleup.records import csv_rows, json_array, json_rows
from scaleup.records.check import check_data
from scaleup.records.formats import data_files, local_path, read_rows


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path):
    """The rows as (place, values) and the problems as (place, what)."""
    problems = []
    rows = list(read_rows(path, problems.append))
    place = len(str(path))
    return [(row.where[place:], row.values) for row in rows], [(p.where[place:], p.what) for p in problems]


GOOD = {
    "blank lines and a BOM": ("a.jsonl", '\ufeff{"a": 1}\n\n  \n{"a": 2}\r\n', [(":1", {"a": 1}), (":4", {"a": 2})]),
    "carriage returns alone": ("a.jsonl", '{"a": 1}\r\r{"a": 2}\r', [(":1", {"a": 1}), (":3", {"a": 2})]),
    "carriage returns in .json": ("a.json", '[{"a": 1},\r{"a":\r2}]', [(":1", {"a": 1}), (":2", {"a": 2})]),
    "carriage returns in csv": ("a.csv", "a,b\r1,2\r3,4", [(":2", {"a": "1", "b": "2"}), (":3", {"a": "3", "b": "4"})]),
    "an object on one line in .json": ("a.json", '{"a": 1}', [(":1", {"a": 1})]),
    "a text with other separators": ("a.csv", "a\nx;y|z\n", [(":2", {"a": "x;y|z"})]),
    "no last line break": ("a.jsonl", '{"a": 1}', [(":1", {"a": 1})]),
    "line separator in a string": (
        "a.jsonl",
        '{"a": "x\u2028y"}\n{"a": 2}',
        [(":1", {"a": "x\u2028y"}), (":2", {"a": 2})],
    ),
    "json lines in .json": ("a.json", '\n{"a": 1}\n{"a": 2}\n', [(":2", {"a": 1}), (":3", {"a": 2})]),
    "an array": (
        "a.json",
        '\ufeff\n[{"a": 1},\n\n {"a":\n 2}, {"a": 3}\n]\n',
        [(":2", {"a": 1}), (":4", {"a": 2}), (":5", {"a": 3})],
    ),
    "an empty array": ("a.json", " [ ] ", []),
    "nothing": ("a.jsonl", "", []),
    "csv": (
        "a.csv",
        '\ufeffa,b\r\n1,x\r\n\r\n2,"y\nz"\r\n3,"p""q"\r\n',
        [(":2", {"a": "1", "b": "x"}), (":4", {"a": "2", "b": "y\nz"}), (":6", {"a": "3", "b": 'p"q'})],
    ),
    "a csv of its header": ("a.csv", "a,b\n", []),
    "an index without a name": ("a.csv", ",a\n0,x\n1,y\n", [(":2", {"a": "x"}), (":3", {"a": "y"})]),
    "tabs": ("a.tsv", 'a\tb\r\n1,5\t"x\ty"\r\n', [(":2", {"a": "1,5", "b": "x\ty"})]),
    "lines in .ndjson": ("a.ndjson", '{"a": 1}\r\n\r\n{"a": 2}\r\n', [(":1", {"a": 1}), (":3", {"a": 2})]),
    "numbers that are not finite, which no one may need": (
        "a.jsonl",
        '{"a": Infinity}\n{"a": -1e400}',
        [(":1", {"a": math.inf}), (":2", {"a": -math.inf})],
    ),
    "an upper-case suffix": ("A.JSONL", '{"a": 1}', [(":1", {"a": 1})]),
}


@pytest.mark.parametrize(("name", "content", "rows"), GOOD.values(), ids=GOOD)
def test_rows_and_their_lines(tmp_path, name, content, rows):
    assert read(write(tmp_path / name, content)) == (rows, [])


BAD = {
    "bad lines among good ones": (
        "a.jsonl",
        b'{"a": 1}\n{"a": \n[1]\n{"a": "\xff"}\n{"a": 5}\n',
        [":1", ":5"],
        [(":2", "JSON"), (":3", "object"), (":4", "UTF-8")],
    ),
    "an object over several lines": ("a.json", '{\n "a": [1,\n 2]\n}', [], [("", "neither an array nor JSON lines")]),
    "a bad first line": ("a.json", '{"a": x}\n{"a": 1}', [":2"], [(":1", "JSON")]),
    "semicolons": ("a.csv", "text;label\nhi, you;1\n", [], [(":1", "'text;label' is one column: semicolons stand")]),
    "tabs in .csv": ("a.csv", "text\tlabel\nhi\t1\n", [], [(":1", "one column: tabs stand in it, not commas")]),
    "commas in .tsv": ("a.tsv", "text,label\nhi,1\n", [], [(":1", "one column: commas stand in it, not tabs")]),
    "too deep": ("a.jsonl", "[" * 100_000 + '\n{"a": 1}', [":2"], [(":1", "JSON")]),
    "utf-16": ("a.jsonl", '{"a": 1}'.encode("utf-16"), [], [("", "UTF-16, not UTF-8")]),
    "utf-16 of the other order": ("a.csv", "a,b\n1,2".encode("utf-16-be"), [], [("", "UTF-16")]),
    "utf-32": ("a.json", '[{"a": 1}]'.encode("utf-32"), [], [("", "UTF-16")]),
    "gzip by another name": ("a.jsonl", gzip.compress(b'{"a": 1}'), [], [("", "gzip")]),
    "Parquet by another name": ("a.csv", b"PAR1", [], [("", "Parquet")]),
    "an archive by another name": ("a.json", b"PK\x03\x04", [], [("", "zip")]),
    "a key twice": (
        "a.jsonl",
        '{"a": 1, "b": 2, "a": 3}\n{"a": [{"b": 1, "b": 1}]}\n{"a": {"b": 1}, "b": 2}',
        [":3"],
        [(":1", "'a' twice"), (":2", "'b' twice")],
    ),
    "a key twice in an item": ("a.json", '[{"a": 1, "a": 2},\n{"a": 1}]', [":2"], [(":1", "'a' twice")]),
    "an item that is no object": ("a.json", '[{"a": 1},\n3,\n{"a": 2}]', [":1", ":3"], [(":2", "object")]),
    "bad bytes in an item": ("a.json", b'[{"a": "\xff"},\n{"a": 2}]', [":2"], [(":1", "UTF-8")]),
    "a broken item": ("a.json", '[{"a": 1},\n{"a"\n: x}, {"a": 2}]', [":1"], [(":3", "JSON")]),
    "an array that ends early": ("a.json", '[{"a": 1},\n{"a": "x', [":1"], [(":2", "JSON")]),
    "an array without its end": ("a.json", '[{"a": 1}\n', [":1"], [(":2", "JSON")]),
    "a comma before the end": ("a.json", '[{"a": 1},\n]', [":1"], [(":2", "JSON")]),
    "text after the array": ("a.json", '[{"a": 1}]\n{"a": 2}', [":1"], [(":2", "follows")]),
    "wrong numbers of fields": ("a.csv", "a,b\n1\n1,2\n1,2,3\n", [":3"], [(":2", "is 1,"), (":4", "is 3,")]),
    "bad bytes in csv": ("a.csv", b"a,b\n1,\xff\n1,2\n", [":3"], [(":2", "UTF-8")]),
    "a stray quote": ("a.csv", 'a,b\n"1"x,2\n1,2\n', [":3"], [(":2", "CSV")]),
    "an open quote": ("a.csv", 'a,b\n1,2\n"1,2\n1,2\n', [":2"], [(":3", "CSV")]),
    "a doubled header": ("a.csv", "a,a\n1,2\n", [], [(":1", "'a' twice")]),
    "a nameless column": ("a.csv", "a,\n1,2\n", [], [(":1", "empty column name")]),
    "a header that cannot be read": ("a.csv", b"a,\xff\n1,2\n", [], [(":1", "UTF-8")]),
    "no parquet at all": ("a.parquet", "PAR1 it is not", [], [("", "Parquet")]),
}


@pytest.mark.parametrize(("name", "content", "good", "bad"), BAD.values(), ids=BAD)
def test_bad_lines_are_all_reported_and_reading_goes_on(tmp_path, name, content, good, bad):
    path = write(tmp_path / name, content)
    rows, problems = read(path)
    assert [where for where, _ in rows] == good
    assert [where for where, _ in problems] == [where for where, _ in bad]
    assert all(part in what for (_, what), (_, part) in zip(problems, bad, strict=True))
    with pytest.raises(ScaleupError) as raised:
        list(read_rows(path))
    assert raised.value.problems[0].where == str(path) + bad[0][0]


def zst(content: bytes) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (".jsonl", '\ufeff{"a": "é"}\r\n\n{"a": "y"}\n'),
        (".ndjson", '{"a": "é"}\n\n{"a": "y"}'),
        (".json", '[{"a": "é"},\n\n{"a": "y"}]'),
        (".csv", 'a\n"é"\ny\n'),
        (".tsv", "a\té\nx\tz\n"),
    ],
)
def test_compressed_files_are_read_like_others(tmp_path, suffix, kind, content):
    plain, packed = write(tmp_path / f"a{kind}", content), tmp_path / f"b{kind}{suffix}"
    write(packed, PACKED[suffix](plain.read_bytes()))
    assert read(packed) == read(plain) and read(plain)[0] and not read(plain)[1]
    write(packed, PACKED[suffix](plain.read_bytes()) * 2)  # as `cat` and parallel compressors write
    assert read(packed)[0] or read(packed)[1][0][0] == ":3"


@pytest.mark.parametrize("suffix", PACKED)
def test_a_compressed_file_that_is_cut_or_none_is_named(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    whole = PACKED[suffix](b"".join(b'{"a": %d}\n' % number for number in range(20_000)))
    for content in (whole[:-12], whole[: len(whole) // 2], b'{"a": 1}\n', whole[:20] + b"?" * 20 + whole[40:]):
        problems = read(write(path, content))[1]
        assert problems and "cannot be read" in problems[-1][1] and problems[-1][0] == ""


def test_what_needs_a_package_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("a.parquet", "a.arrow", "a.csv.zst"):
        assert read(write(tmp_path / name, "a")) == ([], [("", "is read with pyarrow, not installed here")])


def test_conversations_in_csv_are_those_of_json(tmp_path):
    from scaleup.records.examples import example_maker, prompt_maker
    from scaleup.records.preferences import preference_maker

    turns = [{"role": "user", "content": "Hi, é"}, {"role": "assistant", "content": 'say "no"'}]
    pair = {"chosen": turns, "rejected": [turns[0], {"role": "assistant", "content": "yes"}]}
    tools = [{"type": "function", "function": {"name": "f"}}]
    for name, row, maker in (
        ("chats", {"messages": turns, "tools": tools}, example_maker),
        ("openings", {"messages": turns}, prompt_maker),
        ("pairs", pair, preference_maker),
        ("halves", {"prompt": turns[:1], "completion": turns[1:]}, example_maker),
    ):
        write(tmp_path / f"{name}.jsonl", json.dumps(row))
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([row, [json.dumps(value) for value in row.values()]])
        made = []
        for kind in ("jsonl", "csv"):
            data = DataConfig(root=str(tmp_path), train=[{"path": f"{name}.{kind}"}])
            assert check_data(data, ["train"]).problems == []
            [found] = read_rows(tmp_path / f"{name}.{kind}")
            made.append(maker(data, data.train[0])(found.values, 0))
        assert made[0] == made[1]


def test_an_index_without_a_name_is_said(tmp_path):
    notes = []
    list(read_rows(write(tmp_path / "a.csv", ",a\n0,x\n"), on_note=notes.append))
    assert notes == [f"{tmp_path}/a.csv: the first column has no name: it is taken for an index, and not read"]


def test_an_integer_that_python_does_not_read_is_a_mistake_where_it_is_used(tmp_path):
    write(tmp_path / "a.jsonl", f'{{"a": "x", "id": -{"7" * 5000}}}\n{{"a": "y", "id": 1}}')
    data = DataConfig(root=str(tmp_path), train=[{"path": "a.jsonl"}], text="{a}")
    assert check_data(data, ["train"]).problems == []
    [problem] = check_data(data.model_copy(update={"text": "{id}"}), ["train"]).problems
    assert problem.where.endswith("a.jsonl:1") and problem.what.startswith("'id' holds an integer of 5000 digits")


def test_a_field_beyond_the_limit_is_not_told_of_as_one_of_wrong_quotes(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "MAX_FIELD", 1 << 20)
    problems = []
    rows = list(read_rows(write(tmp_path / "a.csv", f"a,b\n1,{'x' * (1 << 21)}\n3,4"), problems.append))
    assert [row.values for row in rows] == [{"a": "3", "b": "4"}]
    assert str(problems[0]).endswith(
        "a.csv:2: has a field of more than 1 MiB -> close its quote if one is left open; write fields of this size as "
        "JSON lines"
    )


def test_rows_are_read_as_they_are_asked_for(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n' + "x" * 10)
    assert next(read_rows(path)).values == {"a": 1}


def test_an_array_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "CHUNK", 3)
    items = [{"text": "é\n\\" * size, "of": [size, {"k": None}]} for size in range(30)]
    path = write(tmp_path / "a.json", json.dumps(items, indent=1))
    assert [values for _, values in read(path)[0]] == items
    with path.open() as file:
        lines = json_array.array_items(file, json_array.RowDecoder())
        next(lines)
        assert file.tell() < 100


def test_a_number_that_a_chunk_ends_in_stays_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "CHUNK", 3)
    rows, problems = read(write(tmp_path / "a.json", '[12345678,\n{"a": 1}]'))
    assert rows == [(":2", {"a": 1})] and [where for where, _ in problems] == [":1"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=40)
@given(
    st.lists(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=3), max_size=5),
    st.booleans(),
    st.sampled_from([None, 2]),
    st.integers(1, 20),
)
def test_what_json_writes_is_read_back(tmp_path_factory, rows, ascii_only, indent, chunk):
    folder = tmp_path_factory.mktemp("json")
    lines = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
    array = json.dumps(rows, ensure_ascii=ascii_only, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "CHUNK", chunk)
        for path in (write(folder / "a.jsonl", lines), write(folder / "b.json", array)):
            found, problems = read(path)
            assert [values for _, values in found] == rows and not problems


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\ufeff"))


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
def test_what_csv_writes_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    found, problems = read(path)
    assert [(values["a"], values["b"]) for _, values in found] == rows and not problems


def test_a_folder_is_its_data_files_by_name(tmp_path):
    for name in ("b.jsonl", "a.csv", "notes.txt", ".hidden.jsonl", "c.json"):
        write(tmp_path / name, "")
    (tmp_path / "inner.jsonl").mkdir()
    assert [file.name for file in data_files(tmp_path)] == ["a.csv", "b.jsonl", "c.json"]
    assert data_files(tmp_path / "b.jsonl") == [tmp_path / "b.jsonl"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("notes.txt", "known kind"),
        ("empty", "without data files"),
        ("trian.jsonl", "did you mean 'train.jsonl'?"),
        ("zzz", "does not exist"),
        ("pipe.jsonl", "pipe.jsonl: is no file: a pipe, a socket or a device -> name a file, or a folder"),
    ],
)
def test_no_data_files_is_an_error(tmp_path, name, part):
    write(tmp_path / "notes.txt", "")
    write(tmp_path / "train.jsonl", "")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ScaleupError, match=part.replace("?", r"\?")):
        data_files(tmp_path / name)


def test_a_name_that_the_locale_spells_otherwise_is_told_of(tmp_path, monkeypatch):
    with pytest.raises(ScaleupError, match="relative paths start from"):
        data_files(tmp_path / "dätä.jsonl")
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    with pytest.raises(ScaleupError, match="this locale's file names are in ascii: export LC_ALL"):
        data_files(tmp_path / "dätä.jsonl")
    with pytest.raises(ScaleupError, match="relative paths start from"):
        data_files(tmp_path / "data.jsonl")


@pytest.mark.parametrize(
    ("path", "is_local"),
    [
        ("there", True),
        ("imdb", False),
        ("stanfordnlp/imdb", False),
        ("missing.jsonl", True),
        ("missing/data.csv", True),
        ("/missing", True),
        ("./missing", True),
        ("../missing", True),
        ("~/missing", True),
        ("~nobody-of-this-name/x", True),
        ("a/b/c", True),
        ("my rows", True),
    ],
)
def test_local_path_or_hub_name(tmp_path, path, is_local):
    (tmp_path / "there").mkdir()
    found = local_path(DataConfig(root=str(tmp_path)), SourceConfig(path=path), "train")
    assert (found is not None) == is_local
    if path in ("there", "missing.jsonl"):
        assert found == tmp_path / path


def test_a_link_that_leads_nowhere_is_no_hub_name(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert local_path(DataConfig(root=str(tmp_path)), SourceConfig(path="loop"), None) == tmp_path / "loop"
    assert local_path(DataConfig(root=str(tmp_path)), SourceConfig(path="imdb"), None) is None


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
def test_a_line_that_would_fill_the_memory_is_not_read_whole(tmp_path: Path, name: str) -> None:
    line = b'{"a": "' + b"x" * json_rows.MOST_CHARACTERS + b'"}'
    file = write(tmp_path / name, gzip.compress(b'{"a": 1}\n' + line + b'\n{"a": 2}\n', 1))
    assert read(file) == ([(":1", {"a": 1})], [(":2", "has more than 67108864 characters")])
    file = write(tmp_path / name, gzip.compress(line, 1))
    assert read(file) == ([], [(":1", "has more than 67108864 characters")])
