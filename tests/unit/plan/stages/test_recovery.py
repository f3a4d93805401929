"""A pruning run that trains what it cuts: its rounds, and whose keys its mistakes are."""

from __future__ import annotations

from typing import Any

from scaleup.config.stages.prune import PruneConfig
from scaleup.errors import Problem
from scaleup.plan.facts import Parts
from scaleup.plan.stages.prune import PLANNER, recovery_problems

PARTS = Parts(depths=(30,), intermediate_size=1536, num_key_value_heads=3, head_dim=64, fixed={})


def config(recovery: dict[str, Any] | None = None, **prune: Any) -> PruneConfig:
    raw: dict[str, Any] = {"stage": "prune", "name": "x", "model": {"path": "a"}, "data": {"train": "rows.jsonl"}}
    return PruneConfig.model_validate({**raw, "prune": prune, "recovery": recovery})


TRAIN = {"train": {"max_steps": 3}}


def test_rounds_go_to_the_sizes_in_equal_steps() -> None:
    rounds = config(TRAIN, layers=20, intermediate_size=1280, rounds=3).prune.in_rounds(PARTS.sizes)
    assert [each.layers for each in rounds] == [27, 23, 20]
    assert [each.intermediate_size for each in rounds] == [1451, 1365, 1280]
    assert {each.num_key_value_heads for each in rounds} == {None}
    assert [each.rounds for each in rounds] == [1, 1, 1]


def test_one_round_is_the_cut_itself() -> None:
    once = config(TRAIN, layers=[0, 5, 29], head_dim=32).prune
    assert once.in_rounds(PARTS.sizes) == [once]


def test_a_recovery_is_a_distillation_by_the_model_as_it_was() -> None:
    whole = config({**TRAIN, "distill": {"temperature": 2.0, "hidden": {}}}, layers=20)
    found = whole.as_distillation("runs/x/distilled/1/pruned")
    assert (found.model.path, found.teacher.path) == ("runs/x/distilled/1/pruned", "a")
    assert (found.distill.temperature, found.train.max_steps) == (2.0, 3)
    control = whole.as_distillation("b", has_teacher=False).distill
    assert (control.alpha, control.hidden) == (0.0, None)


def test_what_is_cut_learns_from_rows_as_they_are() -> None:
    (found,) = recovery_problems(config({**TRAIN, "distill": {"mode": "sequence"}}, layers=20), [])
    assert found.where == "recovery.distill.mode"


def test_without_one_a_run_trains_nothing() -> None:
    plain = config(layers=20)
    assert PLANNER.trains_as(plain) is plain
    assert [str(each) for each in recovery_problems(config(layers=20, rounds=2), [])] == [
        "prune.rounds: without training in between are one cut -> give recovery, or leave it out"
    ]


def test_mistakes_have_the_keys_of_the_run() -> None:
    wrong = config({**TRAIN, "distill": {"student_layers": [0]}}, layers=[0, 1], sparsity=0.5, rounds=2)
    given = [Problem("train.max_steps", "is needed"), Problem("data.train", "is gone")]
    assert [each.where for each in recovery_problems(wrong, given)] == [
        "recovery.train.max_steps",
        "data.train",
        "recovery.distill.student_layers",
        "prune.sparsity",
        "prune.layers",
    ]
