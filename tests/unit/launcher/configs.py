"""Configs with something changed, of runs that nobody starts."""

from __future__ import annotations

from typing import Any

from scaleup.config.load import load_mapping
from scaleup.config.run import RunConfig


def config_of(changes: dict[str, Any]) -> RunConfig:
    raw = {"stage": "sft", "name": "x", "model": {"path": "m"}, "train": {"max_steps": 1}}
    loaded = load_mapping({**raw, "data": {"train": "rows.jsonl", "text": "{a}"}, **changes})
    assert loaded.config is not None and not loaded.problems
    return loaded.config


def ppo_of(reward: dict[str, Any], changes: dict[str, Any] | None = None) -> RunConfig:
    raw = {"stage": "ppo", "name": "x", "model": {"path": "m"}, "ppo": {"num_rollouts": 1, "rollout_batch_size": 1}}
    data = {"train": "rows.jsonl", "prompt": "{a}"}
    loaded = load_mapping({**raw, "data": data, "reward": reward, **(changes or {})})
    assert loaded.config is not None and not loaded.problems, loaded.problems
    return loaded.config
