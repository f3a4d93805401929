"""This module shows the rows that are kept as tokens in the user's cache, and clears them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from scaleup.artifacts.token_cache import Entry, TokenCache, limit_bytes, set_limit
from scaleup.errors import ScaleupError

NUM_LETTERS = 12
"""Counts the letters of a key that are shown, and suffice to name it."""


def show_cache(console: Console, as_json: bool = False) -> None:
    """Prints a row an entry, the one used last first, and how large all are together; or the same as JSON, in bytes."""
    cache = TokenCache()
    entries = cache.entries()
    if as_json:
        told = {"folder": str(cache.folder), "limit": limit_bytes(), "entries": [_as_json(entry) for entry in entries]}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    if entries:
        table = Table()
        for column in ("entry", "source", "rows", "size", "last used"):
            table.add_column(column, justify="right" if column in ("rows", "size") else "left", overflow="fold")
        for entry in entries:
            used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
            table.add_row(entry.key[:NUM_LETTERS], *_known(entry), _size(entry.bytes), used)
        console.print(table)
    total = sum(entry.bytes for entry in entries)
    console.print(
        f"{len(entries)} entries, {_size(total)} of at most {_size(limit_bytes())}, in {cache.folder}",
        highlight=False,
        soft_wrap=True,
    )


def clear_cache(console: Console, keys: Sequence[str]) -> None:
    """Removes the entries whose keys begin with these, or all; those that a run reads stay.

    Raises ScaleupError for a key that is none, and where one cannot be removed."""
    cache = TokenCache()
    entries = cache.entries()
    unknown = [key for key in keys if not any(entry.key.startswith(key) for entry in entries)]
    if unknown:
        raise ScaleupError.of("cache", f"has no entry {unknown[0]!r}", "`scaleup cache` lists them")
    freed, held = 0, 0
    for entry in entries:
        if keys and not any(entry.key.startswith(key) for key in keys):
            continue
        size = entry.bytes
        try:
            is_gone = cache.clear(entry)
        except OSError as error:
            what = f"cannot be removed: {error.strerror or error}"
            raise ScaleupError.of(str(entry.folder), what, "see to the folder") from error
        freed, held = freed + is_gone * size, held + (not is_gone)
    console.print(f"{_size(freed)} freed in {cache.folder}", highlight=False, soft_wrap=True)
    if held:
        console.print(f"note: {held} {'is' if held == 1 else 'are'} read by a run, and left", highlight=False)


def limit_cache(console: Console, gib: float) -> None:
    """Says how many GiB the cache may take, and prints it. What is more goes when the next entry is made."""
    set_limit(gib)
    console.print(f"rows kept as tokens may take {_size(limit_bytes())} from now on", highlight=False)


def _known(entry: Entry) -> tuple[str, str]:
    """Returns an entry's source and its number of rows."""
    try:
        about = entry.about
        return str(about["source"]), f"{about['rows']:,}"
    except (OSError, ValueError, KeyError, TypeError):
        return "(damaged)", ""


def _as_json(entry: Entry) -> dict[str, Any]:
    """Returns what is told of an entry; no source and no rows of one that is damaged."""
    source, rows = _known(entry)
    return {
        "entry": entry.key,
        "source": source if rows else None,
        "rows": int(rows.replace(",", "")) if rows else None,
        "bytes": entry.bytes,
        "last_used": datetime.fromtimestamp(entry.used).astimezone().isoformat(timespec="seconds"),
    }


def _size(count: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count = count / 1024  # type: ignore[assignment]
    return f"{count:,.1f} GiB"
