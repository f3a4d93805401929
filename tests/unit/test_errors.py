"""What a user reads of a mistake: all of it but passwords."""

from __future__ import annotations

import pytest

from scaleup.config.load import load_mapping
from scaleup.errors import Problem, ScaleupError, without_passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:secret@host:80/score", "http://***@host:80/score"),
        ("'https://secret@host' gave no answer", "'https://***@host' gave no answer"),
        ("http://ann:sec/ret@host/x", "http://***@host/x"),
        ("{'url': 'http://ann:se@cret@host/x'}", "{'url': 'http://***@host/x'}"),
        *((same, same) for same in ("http://host:80/a@b", "http://host/?user=a@b", "ann@host", "a: b@c")),
    ],
)
def test_passwords_within_addresses_are_not_shown(text: str, shown: str) -> None:
    assert without_passwords(text) == shown
    problem = Problem(text, text, text)
    assert str(problem) == f"{shown}: {shown} -> {shown}"
    assert str(ScaleupError(problem)) == str(problem)
    assert vars(problem) == {"where": shown, "what": shown, "remedy": shown}, "as a worker records it"


def test_a_config_is_shown_without_them() -> None:
    raw = {
        "stage": "ppo",
        "name": "x",
        "model": {"path": "builtin:tiny-llama"},
        "data": {"train": "rows.jsonl", "prompt": "{p}"},
        "ppo": {"num_rollouts": 1},
        "reward": {"placement": "http", "url": "http://ann:secret@host/score"},
    }
    config = load_mapping(raw).config
    assert config is not None
    assert config.shown()["reward"]["url"] == "http://***@host/score"
    assert config.shown(exclude_defaults=True)["data"]["train"] == [{"path": "rows.jsonl"}]
    assert config.reward.url == "http://ann:secret@host/score"  # type: ignore[attr-defined]
