from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.plan.describe import Described
from scaleup.plan.facts import ModelFacts
from scaleup.plan.machine import Machine
from scaleup.plan.resolve import resolve
from scaleup.plan.types import Plan
from tests.cli import differing
from tests.fake_facts import FACTS

RAW: dict[str, Any] = {
    "stage": "sft",
    "name": "x",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "text": "{text}"},
    "train": {"max_steps": 4},
}


@pytest.fixture
def facts() -> ModelFacts:
    return FACTS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with 10 rows to train on and 3 more."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("rows", 10), ("more", 3)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(count)))
    return tmp_path


@pytest.fixture
def plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Resolves the tiny config with dotted keys changed, on a machine of 8 cores and so many GPUs (and so much memory),
    for a model of which everything is known."""

    def make(
        changes: dict[str, Any] | None = None, num_gpus: int = 0, facts: ModelFacts = FACTS, **memory: int | None
    ) -> Plan:
        monkeypatch.setattr(
            "scaleup.plan.resolve.describe_models", lambda models, *_: Described(dict.fromkeys(models, facts))
        )
        raw = {key: value for key, value in differing(RAW, changes or {}).items() if value is not None}
        return resolve(load_mapping(raw), Machine(num_cores=8, num_gpus=num_gpus, **memory), resume=True)[1]

    return make
