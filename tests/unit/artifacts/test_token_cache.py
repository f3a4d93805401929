"""The cache of tokenized rows: an entry is made once, whole or absent; what a run reads is not cleared under it."""

import os
import threading

import pytest

from scaleup.artifacts.files import cache_folder
from scaleup.artifacts.token_cache import ABOUT, LIMIT, ROWS, Entry, Lock, TokenCache, set_limit
from scaleup.errors import ScaleupError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return TokenCache()


def no_wait():
    raise AssertionError("nobody holds it")


def maker(content=b"rows", made=None):
    def make(file):
        (made if made is not None else []).append(file)
        file.write_bytes(content)
        return {"rows": len(content)}

    return make


def held(cache, key="k", make=None, said=None, wait=no_wait):
    return cache.held(key, make or maker(), wait, (said if said is not None else []).append)


def test_an_entry_is_made_once(cache):
    made = []
    for _ in range(2):
        entry = held(cache, make=maker(made=made)).entry
        assert entry.rows_file.read_bytes() == b"rows" and entry.about["rows"] == 4
    assert len(made) == 1


def test_several_at_once_make_it_once(cache):
    made, all_here = [], threading.Barrier(4)

    def make(file):
        made.append(file)
        file.write_bytes(b"rows")
        return {}

    def run():
        all_here.wait()
        assert held(cache, make=make, wait=lambda: None).entry.rows_file.read_bytes() == b"rows"

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_who_waits_goes_on_when_the_maker_has_failed(cache):
    """Its lock ends with it, and nothing of what it wrote is left."""

    def fail(file):
        file.write_bytes(b"half")
        raise ScaleupError.of("a.jsonl:1", "is no row")

    with pytest.raises(ScaleupError, match="is no row"):
        held(cache, make=fail)
    assert cache.entries() == [] and not list(cache.folder.glob("*.tmp"))
    assert held(cache).entry.about["rows"] == 4


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda entry: entry.rows_file.write_bytes(b"ro"), "it has 2 bytes instead of 4"),
        (lambda entry: entry.rows_file.unlink(), "No such file"),
        (lambda entry: (entry.folder / ABOUT).write_text("{"), "JSON"),
        (lambda entry: (entry.folder / ABOUT).write_text("{}"), "bytes"),
        (lambda entry: entry.rows_file.write_bytes(b"worn"), "its bytes are not those that were written"),
    ],
)
def test_a_damaged_entry_is_made_again_and_told_of(cache, harm, why):
    harm(held(cache).entry)
    said = []
    again = held(cache, said=said)
    assert again.entry.damage() == "" and len(said) == 1
    assert ROWS in said[0] and why in said[0] and "made again" in said[0]


def test_the_least_used_go_first(cache):
    for age, key in enumerate(("young", "middle", "old")):
        entry = held(cache, key, maker(b"x" * 1000)).entry
        os.utime(entry.folder / ABOUT, (10**9 - age, 10**9 - age))
    reader = held(cache, "old")  # which makes it the one used last
    set_limit(2600 / 2**30)
    held(cache, "new", maker(b"x" * 1000))
    assert {entry.key for entry in cache.entries()} == {"old", "new"}
    set_limit(0)
    held(cache, "newest", maker(b"x" * 1000))
    assert {entry.key for entry in cache.entries()} == {"old", "newest"}, "what a run reads stays"
    assert reader.entry.damage() == ""


@pytest.mark.parametrize("text", ["", "{}", '{"gib": "much"}', '{"gib": null}', '{"gib": Infinity}', '{"gib": NaN}'])
def test_a_limit_that_is_none(cache, text):
    set_limit(1)
    (cache_folder() / LIMIT).write_text(text)
    with pytest.raises(ScaleupError, match=f"{LIMIT}: says no limit"):
        held(cache)


def test_clearing(cache):
    reader = held(cache, "read")
    other = held(cache, "idle").entry
    assert [cache.clear(entry) for entry in sorted(cache.entries(), key=lambda entry: entry.key)] == [True, False]
    assert not other.folder.exists() and cache.entries() == [reader.entry]
    reader.lock.release()
    assert cache.clear(reader.entry) and list(cache.folder.iterdir()) == []


def test_a_lock_of_a_file_that_was_removed_is_none(tmp_path):
    """Somebody has cleared the entry between our opening the lock's file and our taking it."""
    file = tmp_path / "lock"
    first, second = Lock(file), Lock(file)
    assert first.take(alone=True) and not second.take(alone=True)
    file.unlink()
    first.release()
    assert not second.take(alone=True) and second.take(alone=True)
    assert not Lock(file).take(alone=False), "it is the file's of that name"


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "scaleup").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ScaleupError, match=r"cannot be written.*no folder.* -> .*XDG_CACHE_HOME"):
        held(TokenCache())


def test_a_disk_that_fills_up(cache):
    def full(file):
        raise OSError(28, "No space left on device")

    with pytest.raises(ScaleupError, match=r"cannot be written.*No space left on device -> make room there"):
        held(cache, make=full)
    assert cache.entries() == []


def test_what_is_no_entry_is_none(cache):
    assert cache.entries() == [] and Entry(cache.folder / "x").damage() and Entry(cache.folder / "x").used == 0
