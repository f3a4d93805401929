"""A clock that jumps ends nothing: what waits counts seconds of its own."""

from __future__ import annotations

import re

from tests.conftest import REPOSITORY

WALL_CLOCK = re.compile(r"\btime\.time\b|\bdatetime\.(?:now|utcnow|today)\b")
WAITING = ("launcher", "distributed", "bridge", "rl")
TELL_THE_TIME = {"launcher/hung.py"}
"""It makes a notice differ from the last one, and waits for nothing by it."""


def test_no_timeout_goes_by_the_wall_clock() -> None:
    package = REPOSITORY / "scaleup"
    files = [file for room in WAITING for file in (package / room).rglob("*.py")]
    assert len(files) > 20
    said = {str(file.relative_to(package)) for file in files if WALL_CLOCK.search(file.read_text(encoding="utf-8"))}
    assert said == TELL_THE_TIME
