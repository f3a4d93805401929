"""How long a group may stand still; what is refused is in tests/e2e/mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from scaleup.config.stages.ppo import PPOConfig
from scaleup.config.stages.sft import SFTConfig
from scaleup.plan.groups import progress_timeout
from tests.cli import differing

SFT: dict[str, Any] = {
    "stage": "sft",
    "name": "x",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "text": "{text}"},
    "train": {"max_steps": 1},
}
PPO: dict[str, Any] = {
    "stage": "ppo",
    "name": "x",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{text}"},
    "ppo": {"num_rollouts": 1},
    "reward": {"placement": "http", "url": "http://localhost/"},
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1620),
        ({"parallel.timeout_seconds": 100}, 90),
        ({"parallel.progress_timeout_seconds": 60}, 60),
    ],
)
def test_a_run_that_asks_nobody(changes: dict[str, Any], expected: float) -> None:
    assert progress_timeout(SFTConfig.model_validate(differing(SFT, changes))) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1620),
        ({"parallel.timeout_seconds": 100}, 150),
        ({"parallel.timeout_seconds": 100, "reward.timeout_seconds": 10}, 90),
        ({"parallel.timeout_seconds": 100, "reward": {"placement": "function", "function": "a:b"}}, 90),
        ({"parallel.progress_timeout_seconds": 60}, 60),
    ],
)
def test_a_policy_may_wait_for_an_answer(changes: dict[str, Any], expected: float) -> None:
    assert progress_timeout(PPOConfig.model_validate(differing(PPO, changes))) == expected
