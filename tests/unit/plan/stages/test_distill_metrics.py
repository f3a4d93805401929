"""Metrics of a distillation: whose rows must say what the answer should be."""

from __future__ import annotations

import pytest

from scaleup.config.load import load_mapping
from scaleup.plan.machine import Machine
from scaleup.plan.stages import planner_of


@pytest.mark.parametrize(("mode", "refused"), [("sequence", True), ("on_policy", False)])
def test_prompts_of_one_split_do_not_excuse_the_others(mode: str, refused: bool) -> None:
    """In sequence mode the teacher completes the training rows alone: held-out text still has no answers."""
    config = load_mapping(
        {
            "stage": "distill",
            "name": "x",
            "model": {"path": "builtin:tiny-llama"},
            "teacher": {"path": "builtin:tiny-llama"},
            "data": {
                "text": "{text}",
                "train": [{"path": "a.jsonl", "prompt": "{prompt}"}],
                "validation": [{"path": "b.jsonl", "prompt": "{prompt}"}],
            },
            "train": {"max_steps": 3},
            "distill": {"mode": mode},
            "evaluation": {"metrics": ["rouge"]},
        }
    ).config
    assert config is not None
    problems = planner_of(config).evaluation_problems(config, Machine(num_cores=1, num_gpus=0))
    assert [each.where for each in problems] == ["evaluation.metrics"] * refused
