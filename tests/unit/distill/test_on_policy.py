"""What a student answers at a step: by its weights of that step, whoever draws it, and all of it has labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scaleup.config.load import load_mapping
from scaleup.config.stages.distill import DistillConfig, DistillSettings
from scaleup.data.loader import Split
from scaleup.data.prompts import Prompt, PromptOrder
from scaleup.data.tokenization import IGNORE
from scaleup.distill.on_policy import Answers, OnPolicyDistillation, on_policy_loss
from scaleup.distributed.runtime import Runtime
from scaleup.models.rollout import Sampling
from tests.cli import differing
from tests.unit.data import tiny
from tests.unit.distill.test_language import teacher_of
from tests.unit.plan.conftest import RAW

PROMPTS = [Prompt(list(range(5, 5 + length)), "") for length in (3, 1, 6, 4, 2, 5)]
DISTILL = {"mode": "on_policy", "divergence": "jsd", "alpha": 1.0, "generation": {"temperature": 1.0}}
SETTINGS = DistillSettings(mode="on_policy", divergence="jsd", alpha=1.0)


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return tiny.single_process(tmp_path)


def config() -> DistillConfig:
    changes = {"stage": "distill", "teacher": {"path": "builtin:tiny-llama"}, "distill": DISTILL}
    found = load_mapping(differing(RAW, {**changes, "train.per_device_eval_batch_size": 3})).config
    assert isinstance(found, DistillConfig)
    return found


def answers_of(runtime: Runtime, name: str, split: Split, student: Any = None, **sampled: Any) -> Answers:
    student = tiny.model(name) if student is None else student
    model = OnPolicyDistillation(student, teacher_of(name), SETTINGS)
    sampling = Sampling(5, None, 1.0, eos_ids=(1,), pad_id=0, **sampled)
    collate = tiny.collator(name, student)
    order = PromptOrder([PROMPTS], [1.0], 0, shuffle=True)
    answers = Answers(runtime, sampling, collate, order, PROMPTS[:4], split, config())
    answers.feed(model)
    return answers


def rows_of(batches: Any) -> list[list[int]]:
    """The labels of each row."""
    return [[token for token in row if token != IGNORE] for batch in batches for row in batch.labels.tolist()]


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_global_batch_is_the_same_however_it_is_divided(runtime: Runtime, name: str) -> None:
    whole = rows_of(answers_of(runtime, name, Split(4, 1, 0, 1)).batches(3))
    parted: list[list[int]] = [[] for _ in range(4)]
    for rank in range(2):
        for micro, row in enumerate(rows_of(answers_of(runtime, name, Split(1, 2, rank, 2)).batches(3))):
            parted[micro * 2 + rank] = row
    assert parted == whole
    assert all(1 <= len(row) <= 5 for row in whole)
    assert whole != rows_of(answers_of(runtime, name, Split(4, 1, 0, 1)).batches(2))


def test_answers_are_those_of_the_weights_at_the_step(runtime: Runtime) -> None:
    """A student that learned from answers drawn before its last step would learn something else."""
    answers = answers_of(runtime, "llama", Split(4, 1, 0, 1))
    before = rows_of(answers.batches(1))
    student = teacher_of("llama")
    answers.model.student.load_state_dict(student.state_dict())
    after = rows_of(answers.batches(1))
    assert after != before
    assert after == rows_of(answers_of(runtime, "llama", Split(4, 1, 0, 1), student).batches(1))


def test_labels_are_the_answer_and_all_of_it(runtime: Runtime) -> None:
    answers = answers_of(runtime, "llama", Split(3, 2, 0, 1))
    batches = answers.batches(0)
    assert [len(batch.labels) for batch in batches] == [3, 3]
    assert answers.model.training and sum(batch.num_labels for batch in batches) == sum(answers.lengths)
    for position, (ids, labels) in enumerate(
        (ids, labels) for batch in batches for ids, labels in zip(batch.inputs["input_ids"], batch.labels, strict=True)
    ):
        prompt = answers.prompts[position].ids
        first = len(prompt) - 1  # where the answer's first token is predicted
        answer = [token for token in labels.tolist() if token != IGNORE]
        assert labels[first : first + len(answer)].tolist() == answer
        assert ids[: first + 1 + len(answer)].tolist() == [*prompt, *answer]


def test_suppressed_ids_are_never_drawn(runtime: Runtime) -> None:
    kept = {7, 11, 13}
    suppressed = tuple(set(range(tiny.model("llama").config.vocab_size)) - kept)
    rows = rows_of(answers_of(runtime, "llama", Split(4, 1, 0, 1), suppressed=suppressed).batches(0))
    assert {token for row in rows for token in row} <= kept


def test_held_out_prompts_count_once_and_alike(runtime: Runtime) -> None:
    answers = answers_of(runtime, "llama", Split(4, 1, 0, 1))
    first, again = (list(answers.validation()) for _ in range(2))
    assert [len(batch.labels) for batch in first] == [3, 1]
    assert rows_of(first) == rows_of(again)


def test_the_loss_has_gradients_of_the_student_alone(runtime: Runtime) -> None:
    answers = answers_of(runtime, "llama", Split(4, 1, 0, 1))
    on_policy_loss(answers.model, answers.batches(0)[0]).backward()
    with_gradients = {name.split(".")[0] for name, p in answers.model.named_parameters() if p.grad is not None}
    assert with_gradients == {"student"}
    assert all(torch.isfinite(p.grad).all() for p in answers.model.student.parameters())
