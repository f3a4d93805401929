"""On-policy distillation: what the models' files say against it, and what of its memory is known."""

from __future__ import annotations

from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.config.stages.distill import DistillConfig
from scaleup.plan.facts import Footprint
from scaleup.plan.stages.distill import distillation_memory
from scaleup.plan.stages.distill_modes import on_policy_model_problems
from tests.cli import differing
from tests.fake_facts import FACTS
from tests.unit.plan.conftest import RAW

GENERATION = {"temperature": 1, "max_new_tokens": 32}
DISTILL = {
    "stage": "distill",
    "teacher": {"path": "builtin:tiny-llama"},
    "distill": {"mode": "on_policy", "alpha": 1, "generation": GENERATION},
}
WHOLE = FACTS


def config(**changes: Any) -> DistillConfig:
    found = load_mapping(differing({**RAW, **DISTILL}, {"data.max_length": 480, **changes})).config
    assert isinstance(found, DistillConfig)
    return found


@pytest.mark.parametrize(
    ("student", "teacher", "where"),
    [
        ({}, {}, []),
        ({}, {"num_virtual_tokens": 4}, ["teacher.path"]),
        ({"num_virtual_tokens": 4}, {}, ["model.path"]),
        ({"eos_token": None}, {}, ["model.tokenizer"]),
        ({"task": "sequence_classification"}, {}, ["distill.mode"]),
        ({"task": "seq2seq_lm"}, {"max_positions": 33}, []),
        ({"task": "seq2seq_lm"}, {"max_positions": 32}, ["distill.generation.max_new_tokens"]),
        ({}, {"max_positions": 511}, ["distill.generation.max_new_tokens"]),
    ],
)
def test_what_files_say(student: dict[str, Any], teacher: dict[str, Any], where: list[str]) -> None:
    """Prompts of 480 tokens and answers of 32 fill the models' 512 positions; a decoder's hold the answers alone."""
    pair = (WHOLE.model_copy(update=changes) for changes in (student, teacher))
    assert [problem.where for problem in on_policy_model_problems(config(), *pair)] == where


def test_activations_are_not_predicted() -> None:
    """Those of answers were never traced; weights, gradients and optimizer are what they are."""
    traced = Footprint(arithmetic="float32", forward=8000, logits=1000, moments=((9000, 0), (100, 3600)))
    student = WHOLE.model_copy(update={"footprints": (traced,)})
    found = distillation_memory(config(), student, WHOLE, "single")
    rows = distillation_memory(config(**{"distill": {}}), student, WHOLE, "single")
    assert found.peak is None and rows.peak is not None
    assert found.gathered == 0, "one process holds all weights"
    held = ("weights", "reference", "gradients", "optimizer")
    assert [getattr(found, part) for part in held] == [getattr(rows, part) for part in held]


def test_a_students_weights_are_whole_while_it_answers() -> None:
    """For rows that are known nothing is gathered."""
    shared = {"parallel": {"strategy": "zero3", "num_processes": 2}}
    gathered = [
        distillation_memory(config(**shared, **changes), WHOLE, WHOLE, "zero3").gathered
        for changes in ({}, {"distill": {}})
    ]
    assert gathered[0] > 0 == gathered[1]
