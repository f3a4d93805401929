"""docs/api.md is what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import scaleup.rl

SCRIPT = Path(__file__).parents[3] / "scripts" / "write_api_reference.py"


def test_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("write_api_reference", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.page()
    assert module.PAGE.read_text(encoding="utf-8") == page, "run scripts/write_api_reference.py"
    assert [name for name in scaleup.rl.__all__ if name not in page] == []
