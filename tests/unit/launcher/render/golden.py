"""What was rendered once, and read by a person. `WRITE_GOLDEN=1 pytest tests/unit/launcher/render` writes it anew."""

from __future__ import annotations

import os
from pathlib import Path

GOLDEN = Path(__file__).parent.parent / "golden"


def check(name: str, text: str) -> None:
    if os.environ.get("WRITE_GOLDEN"):
        (GOLDEN / name).write_text(text, encoding="utf-8")
    assert text == (GOLDEN / name).read_text(encoding="utf-8"), f"{name}: read the change, then WRITE_GOLDEN=1"
