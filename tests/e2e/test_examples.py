"""The examples run as they stand, with fewer steps."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", REPOSITORY / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5"])
def test_ppo_as_a_library(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    example("ppo").main(f"builtin:{model}", str(tmp_path / "run"), num_rollouts=2)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps if "objective/scores" in step] == [1, 2]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_grpo_as_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    example("grpo").main("builtin:tiny-llama", str(tmp_path / "run"), num_rollouts=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "rewards/short/mean" in line] == [1, 2]
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_every_example_has_a_test() -> None:
    assert {file.stem for file in (REPOSITORY / "examples").glob("*.py")} == {"grpo", "ppo"}
