"""This module keeps a notice board: a folder that several processes see, in which each replaces one file that only it
writes.

Agents of several nodes, workers and their agent, doctors, and a first node that refuses a run tell each other what
they must on such boards: JSON goes in, and what each last wrote comes out. A notice is whole or absent. One that cannot
be read now and then says nothing new. Hosts' clocks are never compared: silence is counted in looks of one's own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from scaleup.artifacts.files import read_json, write_json

Notice = TypeVar("Notice")
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError)


class NoticeBoard:
    """Keeps `<folder>/<name>.json` for each participant. The folder must exist before somebody posts."""

    def __init__(self, folder: Path, is_secret: bool = False, is_durable: bool = True) -> None:
        """`is_durable: False` does not wait for the disk: for notices that are worth nothing once the host crashes."""
        self.folder = folder
        self._is_secret = is_secret
        self._is_durable = is_durable

    def post(self, name: str, value: Mapping[str, Any]) -> None:
        """Replace a notice in one step. Raises OSError, e.g. on a full disk."""
        write_json(self._file(name), value, self._is_secret, self._is_durable)

    def read(self, name: str, parse: Callable[[Any], Notice]) -> Notice | None:
        """Return what was last posted, or None if there is nothing, or nothing that can be read and parsed now."""
        with suppress(*UNREADABLE):
            return parse(read_json(self._file(name)))
        return None

    def lacks(self, name: str) -> bool:
        """Return whether there is certainly no such notice. One that cannot be looked at now may be there."""
        try:
            self._file(name).stat()
        except OSError as error:
            return isinstance(error, FileNotFoundError)
        return False

    def withdraw(self, name: str) -> None:
        """Remove a notice if it is there. Raises OSError if it cannot be removed."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


class Silence:
    """Counts for how many looks of our own each participant has posted nothing new.

    Whoever looks first posts a notice, and does not look if that fails: a file system that hangs or a full disk then
    stops both sides, and a machine that was suspended has counted nothing."""

    def __init__(self, expected: Iterable[Hashable] = ()) -> None:
        self._last: dict[Hashable, Any] = {}
        self._looks: dict[Hashable, int] = dict.fromkeys(expected, 0)

    def expect(self, keys: Iterable[Hashable]) -> None:
        """Count from now on also for these, of whom nothing may have been read yet."""
        self._looks = dict.fromkeys(keys, 0) | self._looks

    def note(self, notices: Mapping[Any, Any]) -> None:
        """Count one look, in which these could be read."""
        for key in self._looks.keys() | notices.keys():
            is_new = key in notices and (key not in self._last or notices[key] != self._last[key])
            self._looks[key] = 0 if is_new else self._looks[key] + 1
        self._last.update(notices)

    def looks(self, key: Hashable) -> int:
        """Return the looks since the participant last posted something new; 0 for one neither read nor expected."""
        return self._looks.get(key, 0)
