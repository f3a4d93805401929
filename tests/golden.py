"""Texts that a change of the code alone must not change, kept in tests/goldens: what is said is compared byte by byte
with what was said before, but for the places that are this machine's.

`pytest --write-goldens` writes what is said now: the difference is then read in git."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from difflib import unified_diff
from pathlib import Path

GOLDENS = Path(__file__).parent / "goldens"
REPOSITORY = Path(__file__).parent.parent
HEADER = "=== "
INSTALLED = re.compile(r"""[^\s"']+/(site|dist)-packages\b""")
MADE = re.compile(r"(<CACHE>/scaleup/[\w/.-]+-)[0-9a-f]{12}\b")
"""A model in the cache, named after the code and the packages that made it."""


class Golden:
    """Compares with the files, or writes them."""

    def __init__(self, write: bool) -> None:
        self._write = write

    def check(self, name: str, text: str, places: Mapping[str, Path | str] | None = None) -> None:
        """A file that holds one text; `places` are further folders of this run: what they are called -> where."""
        file, text = GOLDENS / name, portable(text, places or {})
        if self._write:
            _replace(file, text)
        assert file.is_file(), f"{file} is not there: pytest --write-goldens makes it"
        _compare(file.read_text(encoding="utf-8"), text, name)

    def check_section(self, name: str, section: str, text: str, places: Mapping[str, Path | str] | None = None) -> None:
        """A file that holds many texts, each under its header. All that write it are of one process."""
        file, text = GOLDENS / name, portable(text, places or {})
        assert not re.search(f"^{HEADER}", text, re.MULTILINE), "a line that looks like a header"
        if self._write:
            _write_sections(file, sections(name) | {section: text})
        found = sections(name)
        assert section in found, f"{name} has no {section!r}: pytest --write-goldens makes it"
        _compare(found[section], text, f"{name}: {section}")

    def check_sections(self, name: str, known: Collection[str]) -> None:
        """That a file has these sections and no others, which are of cases that are no more."""
        found = sections(name)
        if self._write:
            _write_sections(GOLDENS / name, {each: text for each, text in found.items() if each in known})
        else:
            assert sorted(found) == sorted(known), f"pytest --write-goldens puts {name} right"


def sections(name: str) -> dict[str, str]:
    file = GOLDENS / name
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    parts = re.split(f"^{HEADER}(.*)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def portable(text: str, places: Mapping[str, Path | str]) -> str:
    """Without what is this machine's: folders are called by what they are for, the longest first."""
    home = Path.home()
    cache = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    named = {str(place): name for name, place in {"HOME": home, "CACHE": cache, "REPOSITORY": REPOSITORY}.items()}
    named |= {str(place): name for name, place in places.items()}
    for place in sorted(named, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.-]){re.escape(place)}(?![\w-])", f"<{named[place]}>", text)
    return MADE.sub(r"\1<HASH>", INSTALLED.sub("<PACKAGES>", text))


def _compare(before: str, now: str, name: str) -> None:
    """Raises AssertionError with what differs."""
    lines = unified_diff(before.splitlines(), now.splitlines(), f"{name}, the golden", "what is said now", lineterm="")
    assert before == now, "\n".join(["not what the golden says", *lines])


def _write_sections(file: Path, found: Mapping[str, str]) -> None:
    _replace(file, "".join(f"{HEADER}{section}\n{found[section]}" for section in sorted(found)))


def _replace(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(file)
