"""How a step is filled: what the plan says of it, and what excludes what."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from scaleup.errors import ScaleupError
from scaleup.plan.facts import ModelFacts
from scaleup.plan.types import BatchPlan, Plan
from scaleup.reports.terminal import show_plan

MakePlan = Callable[..., Plan]
EPOCH = {"train.max_steps": None, "train.num_train_epochs": 1}


def batch_of(plan: Plan) -> BatchPlan:
    assert plan.batch is not None
    return plan.batch


def refused(plan: MakePlan, changes: dict[str, Any]) -> list[str]:
    with pytest.raises(ScaleupError) as caught:
        plan(changes)
    return [problem.where for problem in caught.value.problems]


def shown(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=200)
    show_plan(console, plan)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_tokens(plan: MakePlan) -> None:
    changes = {"train.tokens_per_device": 4096, "train.gradient_accumulation_steps": 3, "parallel.num_processes": 2}
    made = plan(changes)
    batch = batch_of(made)
    assert (batch.unit, batch.tokens, batch.micro_batch, batch.global_batch) == ("micro-batches", 4096, 1, 6)
    assert (batch.accumulation, batch.num_steps, batch.num_train_rows) == (3, 4, 10)
    assert "up to 4,096 tokens x 3 accumulation x 2 processes = up to 24,576, padding included" in shown(made)


def test_packing(plan: MakePlan) -> None:
    made = plan({"data.packing": True, "parallel.num_processes": 2})
    batch = batch_of(made)
    assert (batch.unit, batch.tokens, batch.micro_batch, batch.global_batch) == ("sequences", None, 8, 16)
    assert "8 sequences x 1 accumulation x 2 processes = 16" in shown(made)


def test_packing_by_tokens(plan: MakePlan) -> None:
    """A sequence is a row of max_length tokens."""
    changes = {"data": {"train": "rows.jsonl", "text": "{text}", "packing": True, "max_length": 100}}
    batch = batch_of(plan({**changes, "train.tokens_per_device": 399}))
    assert (batch.unit, batch.tokens, batch.micro_batch) == ("sequences", None, 3)
    assert refused(plan, {**changes, "train.tokens_per_device": 99}) == ["train.tokens_per_device"]


def test_steps_of_an_epoch(plan: MakePlan) -> None:
    """Rows can be counted beforehand, and batches that go by lengths cannot."""
    assert batch_of(plan({**EPOCH, "train.group_by_length": True})).num_steps == 2
    for key, value in {"train.tokens_per_device": 4096, "data.packing": True}.items():
        made = plan({**EPOCH, key: value})
        assert batch_of(made).num_steps is None
        assert "known once the rows are tokenized" in shown(made)


def test_notes_on_a_mixture_know_no_rows(plan: MakePlan) -> None:
    sources = [{"path": "rows.jsonl", "weight": 3}, {"path": "more.jsonl", "weight": 1}]
    notes = plan({"data.train": sources, "train.tokens_per_device": 4096}).notes
    assert notes == ["rows.jsonl: 75% of the rows drawn", "more.jsonl: 25% of the rows drawn"]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"train.per_device_train_batch_size": 8}, ["train.per_device_train_batch_size"]),
        ({"train.global_batch_size": 8}, ["train.global_batch_size"]),
        ({"train.group_by_length": True}, ["train.group_by_length"]),
        ({"data.streaming": True}, ["train.tokens_per_device"]),
        ({"data.shuffle": False}, ["train.tokens_per_device"]),
    ],
)
def test_what_excludes_tokens(plan: MakePlan, changes: dict[str, Any], where: list[str]) -> None:
    assert refused(plan, {"train.tokens_per_device": 4096, **changes}) == where


@pytest.mark.parametrize("key", ["train.group_by_length", "data.packing"])
def test_what_excludes_the_others(plan: MakePlan, key: str) -> None:
    plan({key: True, "train.global_batch_size": 16})
    assert refused(plan, {key: True, "data.streaming": True, "data.shuffle": False}) == [key, key]
    assert refused(plan, {key: True, "train.global_batch_size": 12}) == ["train.global_batch_size"]


def test_packing_excludes_grouping_and_unknown_code(plan: MakePlan) -> None:
    assert refused(plan, {"data.packing": True, "train.group_by_length": True}) == ["train.group_by_length"]
    assert refused(plan, {"data.packing": True, "model.trust_remote_code": True}) == ["data.packing"]


@pytest.mark.parametrize(("task", "kind"), [("seq2seq_lm", "t5"), ("causal_lm", "opt"), ("causal_lm", "mamba")])
def test_models_that_cannot_pack(plan: MakePlan, facts: ModelFacts, task: str, kind: str) -> None:
    known = facts.model_copy(update={"task": task, "model_type": kind})
    changes = {"data": {"train": "rows.jsonl", "prompt": "{text}", "completion": "{text}"}}
    plan(changes, facts=known)
    with pytest.raises(ScaleupError, match=r"data\.packing"):
        plan({**changes, "data.packing": True}, facts=known)


def test_a_written_config_is_read_back(plan: MakePlan, tmp_path: Any) -> None:
    """Also with keys that exclude each other: a complete config names both."""
    from scaleup.config.load import dump, load, load_mapping

    raw = {"stage": "sft", "name": "x", "model": {"path": "m"}, "data": {"train": "rows.jsonl", "text": "{text}"}}
    config = load_mapping({**raw, "train": {"max_steps": 1, "tokens_per_device": 64}}).config
    assert config is not None
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert load(tmp_path / "config.yaml") == config
    plan({"train": config.model_dump()["train"]})
