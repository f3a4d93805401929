"""The Python programs that stand in pages are run as they stand there."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from tests.conftest import REPOSITORY


def run_snippet(page: str, number: int, folder: Path) -> str:
    """Runs a page's program after its first `folder = ...` was made to name this one. Returns what it prints."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    program = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[number]
    program, count = re.subn(r'^folder = ".*"$', f"folder = {str(folder)!r}", program, flags=re.MULTILINE)
    assert count == 1, f"{page} names no folder"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, page, "exec"), {})
    return printed.getvalue()
