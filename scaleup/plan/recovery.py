"""A pruning run that trains what it cuts: its recovery as a distillation, and the rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scaleup.config.prune import PruneSettings
from scaleup.config.schema import RunConfig
from scaleup.config.stages import DistillConfig, PruneConfig
from scaleup.errors import Problem
from scaleup.plan.facts import Parts

OWN_KEYS = ("train", "distill", "gradient_checkpointing")
"""Sections of a distillation that a pruning run has within `recovery`."""


def learner_of(config: RunConfig) -> RunConfig:
    """The config by which a run trains: its own, or that of a pruning run's recovery."""
    return recovery_of(config) if isinstance(config, PruneConfig) and config.recovery else config


def recovery_of(config: PruneConfig, model: str | None = None, has_teacher: bool = True) -> DistillConfig:
    """The recovery of the cut model at the path `model`; its teacher is what the run began with. The control has the
    labels alone."""
    assert config.recovery is not None
    recovery = config.recovery
    alone = {"alpha": 0.0, "hidden": None, "cache": None}
    return DistillConfig(
        stage="distill",
        name=config.name,
        runs_dir=config.runs_dir,
        model=config.model.model_copy(update={"path": model} if model else {}),
        teacher=config.model,
        distill=recovery.distill if has_teacher else recovery.distill.model_copy(update=alone),
        data=config.data,
        train=recovery.train,
        gradient_checkpointing=recovery.gradient_checkpointing,
        parallel=config.parallel,
    )


def recovery_problems(config: RunConfig, found: Sequence[Problem]) -> Iterator[Problem]:
    """What is wrong with a recovery: `found` are the problems of the distillation that it is, whose keys become the
    run's own."""
    if not isinstance(config, PruneConfig):
        return
    if config.recovery is None:
        if config.prune.rounds > 1:
            yield Problem("prune.rounds", "without training in between are one cut", "give recovery, or leave it out")
        return
    for problem in found:
        is_own = problem.where.split(".")[0] in OWN_KEYS
        yield Problem(f"recovery.{problem.where}" if is_own else problem.where, problem.what, problem.remedy)
    if config.recovery.distill.mode != "offline":
        what = "what is cut learns from the rows as they are"
        yield Problem("recovery.distill.mode", what, "leave it out, or distill in a run of its own")
    if config.recovery.distill.student_layers is not None:
        what = "the student is what is left after the cut"
        yield Problem("recovery.distill.student_layers", what, "leave it out: prune.layers says it")
    if config.prune.sparsity is not None:
        what = "zeros do not outlive training"
        yield Problem("prune.sparsity", what, "leave recovery out, or make zeros in a run after it")
    if config.prune.rounds > 1 and isinstance(config.prune.layers, list):
        yield Problem("prune.layers", "in several rounds is a count, not a list", "say how many layers to keep")


def rounds_of(settings: PruneSettings, parts: Parts) -> list[PruneSettings]:
    """What each round cuts, in equal steps from the model's sizes to those asked for."""
    whole = {
        "layers": min(parts.depths),
        "intermediate_size": parts.intermediate_size,
        "num_key_value_heads": parts.num_key_value_heads,
        "head_dim": parts.head_dim,
    }
    wanted = {key: size for key in whole if isinstance(size := getattr(settings, key), int)}
    steps = []
    for number in range(1, settings.rounds + 1):
        part = number / settings.rounds
        sizes = {key: whole[key] - round(part * (whole[key] - size)) for key, size in wanted.items()}
        steps.append(settings.model_copy(update={**sizes, "rounds": 1}))
    return steps
