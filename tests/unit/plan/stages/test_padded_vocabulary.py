"""A teacher and a student of one tokenizer whose embeddings are padded to different sizes, as Qwen2.5's of 7B and 0.5B
are: planned, with a note; other tokenizers are refused."""

from __future__ import annotations

from typing import Any

import pytest

from scaleup.config.load import load_mapping
from scaleup.config.stages.distill import DistillConfig
from scaleup.plan.stages.distill import PLANNER, TEACHER, pair_problems
from scaleup.plan.types import BatchPlan
from scaleup.records.check import DataCheck
from tests.cli import differing
from tests.fake_facts import FACTS
from tests.unit.plan.conftest import RAW

STUDENT = FACTS.model_copy(update={"vocab_size": 300, "tokenizer_size": 259, "vocabulary": "one"})
BATCH = BatchPlan(micro_batch=1, accumulation=1, global_batch=1, num_steps=1, num_train_rows=1)


def config(**changes: Any) -> DistillConfig:
    own = {"stage": "distill", "teacher": {"path": "builtin:tiny-llama"}, "distill": {}}
    found = load_mapping(differing({**RAW, **own}, changes)).config
    assert isinstance(found, DistillConfig)
    return found


def problems(given: DistillConfig, **teacher: Any) -> list[str]:
    found = pair_problems(given, STUDENT, STUDENT.model_copy(update=teacher))
    return [f"{problem.where}: {problem.what}" for problem in found]


@pytest.mark.parametrize("distill", [{}, {"mode": "sequence"}, {"cache": {"top_k": 64}}, {"hidden": {}}], ids=str)
def test_padding_is_no_other_vocabulary(distill: dict[str, Any]) -> None:
    given = config(distill=distill)
    teacher = STUDENT.model_copy(update={"vocab_size": 320})
    assert problems(given, vocab_size=320) == []
    notes = PLANNER.notes(given, {"model": STUDENT, TEACHER: teacher}, BATCH, DataCheck([], {}))
    assert notes == [
        "teacher has 320 embeddings and model 300, for one tokenizer of 259 ids: the padding beyond is left out of "
        "both distributions"
    ]
    assert PLANNER.notes(given, {"model": STUDENT, TEACHER: STUDENT}, BATCH, DataCheck([], {})) == []


def test_another_tokenizer_is_refused_whatever_the_padding() -> None:
    for size in (300, 320):
        found = problems(config(), vocab_size=size, tokenizer_size=260, vocabulary="two")
        assert found == ["teacher.path: its tokenizer has 260 tokens, and model's 259"]
        found = problems(config(), vocab_size=size, vocabulary="two")
        assert found == ["teacher.path: its tokenizer maps the same tokens to different ids"]


def test_a_cache_holds_no_padding_of_one_alone() -> None:
    given = config(distill={"cache": {"top_k": 270}})
    assert problems(given) == []
    assert problems(given, vocab_size=320) == ["distill.cache.top_k: 270 is more than the vocabulary's 259 tokens"]
