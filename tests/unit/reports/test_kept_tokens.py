"""What `scaleup cache` lists and clears."""

import json

import pytest
from rich.console import Console

from scaleup.artifacts.token_cache import ABOUT, TokenCache
from scaleup.errors import ScaleupError
from scaleup.reports.kept_tokens import clear_cache, show_cache


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def make(key):
        def fill(file):
            file.write_bytes(b"x" * 2048)
            return {"source": f"{key[0]}.jsonl", "rows": 1234}

        return TokenCache().held(key, fill, lambda: None, print)

    return make


@pytest.fixture
def console():
    return Console(record=True, width=150)


def test_json(made, capsys):
    made("a" * 40)
    (made("b" * 40).entry.folder / ABOUT).write_text("no JSON")
    show_cache(Console(), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["limit"] == 64 * 2**30
    entries = {entry["entry"][0]: (entry["source"], entry["rows"], entry["bytes"] > 2048) for entry in told["entries"]}
    assert entries == {"a": ("a.jsonl", 1234, True), "b": (None, None, True)}


def test_listing(made, console):
    show_cache(console)
    assert "0 entries, 0 bytes of at most 64.0 GiB" in console.export_text()
    made("a" * 40)
    (made("b" * 40).entry.folder / ABOUT).write_text("no JSON")
    show_cache(console)
    shown = console.export_text()
    assert "aaaaaaaaaaaa " in shown and "a.jsonl" in shown and "1,234" in shown and "2.1 KiB" in shown
    assert "(damaged)" in shown and "2 entries, 4." in shown


def test_clearing(made, console):
    held = made("a" * 40)
    made("b" * 40).lock.release()
    made("c" * 40).lock.release()
    clear_cache(console, ["bbbb"])
    assert {entry.key[0] for entry in TokenCache().entries()} == {"a", "c"}
    clear_cache(console, [])
    assert TokenCache().entries() == [held.entry]
    assert "note: 1 is read by a run, and left" in console.export_text()
    with pytest.raises(ScaleupError, match="has no entry 'zz' -> `scaleup cache` lists them"):
        clear_cache(console, ["zz"])
