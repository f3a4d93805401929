"""docs/config.md is what the schema says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "write_compatibility.py"


def test_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("write_compatibility", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run scripts/write_compatibility.py"
