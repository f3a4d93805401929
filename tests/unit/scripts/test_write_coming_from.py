"""The tables of docs/coming-from/ are what `scaleup convert` does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from scaleup.config.convert import TRAINERS
from scaleup.config.mistakes import _sections_in
from scaleup.config.stages import STAGES

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


def test_our_keys_on_the_page_that_is_written_by_hand_exist() -> None:
    page = (SCRIPT.parents[1] / "docs/coming-from/openrlhf.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2] for line in page.splitlines() if line.startswith("| `--")]
    keys = {key for row in rows for key in re.findall(r"`([a-z_.0-9]+)`", row)}
    assert len(keys) > 30
    for key in keys:
        sections: list[type[BaseModel]] = [STAGES["rl"]]
        for part in key.split("."):
            found = [section.model_fields[part] for section in sections if part in section.model_fields]
            assert found, f"there is no {key}"
            sections = [each for field in found for each in _sections_in(field.annotation)]
