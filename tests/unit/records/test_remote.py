"""Files of other machines: `memory://` stands for them. They are read, refused and known like those of this one."""

import bz2
import gzip
import json
import lzma
import sys

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from scaleup.artifacts.data_file import source_marks
from scaleup.config.data import DataConfig
from scaleup.records.check import check_data
from scaleup.records.formats import data_files, local_path, read_rows
from scaleup.records.remote import RemotePath, remote_path

ROWS = [{"p": f"row {at}", "c": "é"} for at in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(autouse=True)
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def table(kind):
    sink = pyarrow.BufferOutputStream()
    rows = pyarrow.Table.from_pylist(ROWS)
    if kind == "parquet":
        parquet.write_table(rows, sink)
    else:
        with pyarrow.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def config(path):
    return DataConfig.model_validate({"train": path, "prompt": "{p}", "completion": "{c}"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.jsonl.bz2", bz2.compress(LINES)),
        ("a.jsonl.xz", lzma.compress(LINES)),
        ("a.jsonl.zst", pyarrow.compress(LINES, "zstd", asbytes=True)),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.csv", b"p,c\n" + "".join(f"{row['p']},{row['c']}\n" for row in ROWS).encode()),
        ("a.parquet", table("parquet")),
        ("a.arrow", table("arrow")),
    ],
    ids=lambda part: part if isinstance(part, str) else "",  # not of the content: gzip writes the time into it
)
def test_every_kind_of_file(memory, name, content):
    memory.pipe(f"/bucket/deep/{name}", content)
    data = config(f"memory://bucket/deep/{name}")
    path = local_path(data, data.train[0], "train")
    assert [row.values for row in read_rows(path)] == ROWS
    assert check_data(data, ["train"]).problems == [] and check_data(data, ["train"]).sources["train"][0].rows == 3


def test_a_folder(memory):
    for name in ("b.jsonl", "a.jsonl", "notes.txt", ".hidden.jsonl"):
        memory.pipe(f"/bucket/{name}", LINES)
    assert list(map(str, data_files(RemotePath("memory://bucket")))) == [
        "memory://bucket/a.jsonl",
        "memory://bucket/b.jsonl",
    ]


def test_a_bad_row_is_named(memory):
    memory.pipe("/bucket/a.jsonl", LINES + b'{"p": "no answer"}\n')
    [problem] = check_data(config("memory://bucket/a.jsonl"), ["train"]).problems
    assert problem.where == "memory://bucket/a.jsonl:4" and "'c'" in problem.what


def test_a_file_that_is_not_there(memory):
    memory.pipe("/bucket/train.jsonl", LINES)
    [problem] = check_data(config("memory://bucket/trian.jsonl"), ["train"]).problems
    assert "memory://bucket/trian.jsonl" in problem.what and "does not exist" in problem.what
    assert problem.remedy == "did you mean 'train.jsonl'?"


def test_a_file_is_known_by_what_its_place_says_of_it(memory, monkeypatch):
    memory.pipe("/bucket/a.jsonl", LINES)
    data = config("memory://bucket/a.jsonl")
    before = source_marks(data, ["train"])["data.train.0"]
    monkeypatch.setattr(RemotePath, "open", None)  # it is not fetched for that
    assert source_marks(data, ["train"])["data.train.0"] == before
    memory.pipe("/bucket/a.jsonl", LINES[::-1])
    assert before.change(source_marks(data, ["train"])["data.train.0"])


def test_a_file_of_which_nothing_is_said_is_read(memory, monkeypatch):
    monkeypatch.setattr(RemotePath, "version", None)
    memory.pipe("/bucket/a.jsonl", LINES)
    data = config("memory://bucket/a.jsonl")
    before = source_marks(data, ["train"])["data.train.0"]
    memory.pipe("/bucket/a.jsonl", LINES)
    assert source_marks(data, ["train"])["data.train.0"] == before and before.files[0].lines == 3


def test_an_address_of_this_machine(tmp_path):
    (tmp_path / "a b.jsonl").write_bytes(LINES)
    data = config(f"file://{tmp_path}/a%20b.jsonl")
    assert local_path(data, data.train[0], "train") == tmp_path / "a b.jsonl"
    assert remote_path("rows/a.jsonl") is None and remote_path("user/name") is None


@pytest.mark.parametrize(("kind", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_package_that_is_missing(monkeypatch, kind, package):
    monkeypatch.setitem(sys.modules, package, None)
    [problem] = check_data(config(f"{kind}://bucket/a.jsonl"), ["train"]).problems
    assert f"'{kind}://bucket/a.jsonl' is read with {package}, not installed here" in problem.what
    assert problem.remedy == "pip install 'scaleup[remote]'"


def test_a_place_that_nobody_knows():
    [problem] = check_data(config("nowhere://bucket/a.jsonl"), ["train"]).problems
    assert "cannot be reached: Protocol not known: nowhere" in problem.what


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("s3", PermissionError(13, "Access Denied"), "AWS_ACCESS_KEY_ID"),
        ("gs", RuntimeError("no credentials\nanywhere"), "GOOGLE_APPLICATION_CREDENTIALS"),
        ("other", ConnectionError("no route"), "credentials in the environment"),
    ],
)
def test_a_place_that_lets_nobody_in(monkeypatch, kind, error, said):
    def refuse(address):
        raise error

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    [problem] = check_data(config(f"{kind}://bucket/a.jsonl"), ["train"]).problems
    assert "cannot be reached: " in problem.what and said in problem.remedy and "\n" not in problem.what
