"""The tables of docs/coming-from/ are what `scaleup convert` does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from scaleup.config.convert import TRAINERS

SCRIPT = Path(__file__).parents[3] / "scripts" / "write_coming_from.py"


@pytest.mark.parametrize("name", TRAINERS)
def test_page_is_up_to_date(name: str) -> None:
    spec = importlib.util.spec_from_file_location("write_coming_from", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    trainer = TRAINERS[name]
    text = (module.FOLDER / f"{trainer.page}.md").read_text(encoding="utf-8")
    assert text == module.page(trainer), "run scripts/write_coming_from.py"
    assert all(f"| `{key}` |" in text for key, rule in trainer.rules.items() if rule.to)
