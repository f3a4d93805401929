"""A check of large files is remembered as long as they, and what is asked of them, stay as they are."""

import json
import os

import pytest

from scaleup.config.data import DataConfig
from scaleup.plan import known_rows
from scaleup.plan.known_rows import known_check


@pytest.fixture
def check(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(known_rows, "LEAST_BYTES", 10)
    monkeypatch.setattr(known_rows, "is_settled", lambda status: True)
    calls = []
    real = known_rows.check_data
    monkeypatch.setattr(known_rows, "check_data", lambda *asked: calls.append(asked) or real(*asked))
    (tmp_path / "a.jsonl").write_text(json.dumps({"p": "a", "c": "b"}) + "\n")

    def checked(max_rows=None, prompts=(), **keys):
        data = DataConfig.model_validate({"root": str(tmp_path), "train": "a.jsonl", **keys})
        before = len(calls)
        return known_check(data, ["train"], max_rows, prompts), len(calls) > before

    checked.folder = tmp_path
    return checked


FORMAT = {"prompt": "{p}", "completion": "{c}"}


def test_what_was_checked_is_not_read_again(check):
    first, was_read = check(**FORMAT)
    again, is_read = check(**FORMAT)
    assert was_read and not is_read and again == first and again.sources["train"][0].rows == 1


def test_notes_and_pairs_that_are_left_out_come_back(check):
    (check.folder / "a.jsonl").write_text('{"chosen": "a", "rejected": "a"}\n{"chosen": "a", "rejected": "b"}\n')
    first, _ = check()
    again, is_read = check()
    assert not is_read and again == first and again.sources["train"][0].left_out == {"equal": 1} and again.notes


def test_other_files_and_other_questions_are_checked(check):
    check(**FORMAT)
    for asked in ({"prompt": "{p}!"}, {"max_rows": 1}, {"prompts": ("train",)}):
        assert check(**{**FORMAT, **asked})[1]
    file = check.folder / "a.jsonl"
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert check(**FORMAT)[1]


def test_mistakes_and_labels_are_looked_at_each_time(check):
    for keys in ({"prompt": "{q}", "completion": "{c}"}, {"text": "{p}", "label": "c"}):
        assert check(**keys)[1] and check(**keys)[1]


def test_small_files_and_fresh_ones_are_not_remembered(check, monkeypatch):
    monkeypatch.setattr(known_rows, "is_settled", lambda status: False)
    assert check(**FORMAT)[1] and check(**FORMAT)[1]
    monkeypatch.setattr(known_rows, "is_settled", lambda status: True)
    monkeypatch.setattr(known_rows, "LEAST_BYTES", 10**6)
    assert check(**FORMAT)[1] and check(**FORMAT)[1]


def test_what_is_damaged_is_checked_again(check):
    check(**FORMAT)
    for file in (check.folder / "cache" / "scaleup" / "rows").iterdir():
        file.write_text('{"sources": 3}')
    assert check(**FORMAT)[1] and not check(**FORMAT)[1]
