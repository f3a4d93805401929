"""What a run reads of this machine, and what only looks like it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.plan.cluster_targets import local_paths
from tests.cli import differing

PPO: dict[str, Any] = {
    "stage": "ppo",
    "name": "x",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "/"},
    "ppo": {"num_rollouts": 2},
    "reward": {"model": {"path": "package:something"}},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("model", "adapter", "scorer"):
        (tmp_path / name).mkdir()
    for name in ("rows.jsonl", "reward.py"):
        (tmp_path / name).touch()
    return tmp_path


def found(raw: dict[str, Any], **changes: Any) -> dict[str, Path]:
    loaded = load_mapping(differing(raw, {key.replace("__", "."): value for key, value in changes.items()}))
    assert loaded.config is not None and loaded.problems == []
    return dict(local_paths(loaded.config))


def test_names_are_no_paths(here: Path) -> None:
    """Nor is a template that happens to be one."""
    assert found(PPO) == {"data.root": here}
    assert found(PPO, model__path="organisation/name") == {"data.root": here}


def test_each_folder_and_file(here: Path) -> None:
    reward = {"placement": "function", "function": "reward.py:score"}
    several = found(PPO, model={"path": "model", "tokenizer": str(here / "model")}, reward=reward)
    assert several == {
        "data.root": here,
        "model.path": here / "model",
        "model.tokenizer": here / "model",
        "reward.function": here / "reward.py",
    }
    assert found(PPO, reward__model__path="scorer")["reward.model.path"] == here / "scorer"


def test_a_source_with_a_path_of_its_own_needs_no_root(here: Path) -> None:
    assert found(PPO, data__train=str(here / "rows.jsonl")) == {"data.train.0.path": here / "rows.jsonl"}


def test_a_source_of_a_hub_needs_none_either(here: Path) -> None:
    assert found(PPO, data__train="organisation/rows") == {}


def test_several_adapters(here: Path) -> None:
    raw = {key: value for key, value in PPO.items() if key not in ("ppo", "reward")}
    both = {"one": "adapter", "other": "organisation/name"}
    assert found(raw, stage="generate", adapters=both)["adapters.one"] == here / "adapter"
    assert "adapters.other" not in found(raw, stage="generate", adapters=both)


def test_a_file_with_a_chat_template_is_read_too(here: Path) -> None:
    (here / "chat.jinja").touch()
    assert found(PPO, data__chat_template="chat.jinja")["data.chat_template"] == here / "chat.jinja"
    assert found(PPO, data__chat_template="trl:qwen3") == {"data.root": here}


def test_a_judges_file_of_its_key_is_read_too(here: Path) -> None:
    (here / "key").touch()
    judge = {"model": "m", "api_key_file": "key"}
    reward = {"placement": "http", "format": "openai", "url": "http://localhost/", "judge": judge}
    assert found(PPO, reward=reward)["reward.judge.api_key_file"] == here / "key"


def test_those_of_each_of_several_rewards(here: Path) -> None:
    raw = {key: value for key, value in PPO.items() if key not in ("ppo", "reward")}
    function = {"name": "a", "placement": "function", "function": "reward.py:score"}
    rewards = [function, {"name": "b", "model": {"path": "scorer"}}]
    several = found(raw, stage="rl", algorithm={"type": "grpo"}, rollouts={"num_rollouts": 1}, rewards=rewards)
    assert several["rewards.0.function"] == here / "reward.py"
    assert several["rewards.1.model.path"] == here / "scorer"
