"""A config goes in; the equalities between two trainings of its twin come out: however its steps are split, whatever
strategy holds it, stopped or not, in which precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scaleup.artifacts.differences import largest_relative_loss_difference
from scaleup.artifacts.metrics_log import logged_values
from scaleup.config.stages.base import TrainingConfig
from scaleup.plan.compat import STRATEGIES, cell_of, verdict
from scaleup.plan.extras import strategy_problems
from scaleup.plan.twins import GLOBAL_BATCH, NUM_STEPS
from scaleup.studies.verify.equalities import TOLERANCE, Equality, TwinRun, alike, compared
from scaleup.studies.verify.twin import is_by_rows, split_of

EXACT, BF16_TOLERANCE = 0.0, 2**-8
BIT_BY_BIT = "the same sums in the same order: tests/invariants/test_resume.py"
KILLS = "what a checkpoint holds is all there is to go on from: benchmarks/faults.md"
ELSEWHERE = "float32 sums in another order: tests/invariants/test_resume_elsewhere.py"
ROUNDING = "one unit in bfloat16's last place, of the loss: tests/invariants/test_one_trajectory.py"
MOVES = "100 times the bound of the others, which would hold for weights that never move"
PUT_TOGETHER = "rows are put together by their lengths, so that another micro-batch is another step"
CLOSED_FORM = "Transformers' lr_scheduler_type, in float64: tests/unit/train/test_optim.py"
LEAST_EPSILON = 1e-6
STOP, NUM_WARMUP_STEPS = NUM_STEPS // 2, 1
SHARES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "constant_with_warmup": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}
"""Maps a schedule -> the share of the peak rate after warm-up, by progress from 0 to 1."""


def training_equalities(config: TrainingConfig, reference: TwinRun) -> Iterator[Equality]:
    """Yields the equalities between trainings, in the order in which they are shown."""
    own = config.parallel.strategy
    own = "ddp" if own in ("auto", "single") else own
    mine = under(config, own)
    yield _moves(config, reference)
    yield alike(config, "processes", f"one process = two, {own}", (reference, mine))
    yield from _splits(config, reference)
    for name in STRATEGIES:
        if name not in ("single", own):
            yield _strategy(config, reference, name)
    yield from _resumes(config, mine)
    yield _precision(config, reference)


def under(config: TrainingConfig, strategy: str) -> TwinRun:
    """Returns the run of a twin on two processes under a strategy."""
    micro_batch = GLOBAL_BATCH // 2 if is_by_rows(config) else GLOBAL_BATCH // 4
    changes = {"parallel.strategy": strategy, **split_of(config, 2, micro_batch, 1)}
    if strategy == config.parallel.strategy:
        offloads = ("offload_optimizer", "offload_parameters")
        changes |= {f"parallel.{key}": getattr(config.parallel, key) for key in offloads}
    return TwinRun(strategy, changes)


def _moves(config: TrainingConfig, reference: TwinRun) -> Equality:
    clip = config.train.max_grad_norm or float("inf")

    def moved(one: Path, _: Path) -> float:
        norms, rates = (logged_values(one / "metrics.jsonl", name) for name in ("grad_norm", "learning_rate"))
        if not norms or norms.keys() != rates.keys():
            raise ValueError(f"{one.name} has logged no gradient")
        return max(rates[step] * min(norms[step], clip) for step in norms)

    what = "the twin learns: its largest step"
    return Equality("learns", what, (reference, reference), 100 * TOLERANCE, MOVES, moved, is_least=True)


def _splits(config: TrainingConfig, reference: TwinRun) -> Iterator[Equality]:
    why = "" if is_by_rows(config) else PUT_TOGETHER
    others = {
        "accumulation": ("one batch = two accumulated", split_of(config, 1, GLOBAL_BATCH // 2, 2)),
        "micro-batch": (f"{GLOBAL_BATCH} rows at once = one at a time", split_of(config, 1, 1, GLOBAL_BATCH)),
    }
    if config.plans_its_batch:  # whose rollout says how many micro-batches there are
        del others["accumulation"]
    for name, (what, split) in others.items():
        yield alike(config, name, what, (reference, TwinRun(name, split)), why)
    runs = reference, TwinRun("checkpointing", {"gradient_checkpointing": True})
    yield alike(config, "checkpointing", "activations kept = computed again", runs)


def _strategy(config: TrainingConfig, reference: TwinRun, strategy: str) -> Equality:
    answer, missing = verdict(cell_of(_in_float32(config), strategy)), list(strategy_problems(strategy))
    why = answer.reason if answer.status == "refused" else missing[0].what if missing else ""
    return alike(config, strategy, f"single = {strategy}", (reference, under(config, strategy)), why)


def _in_float32(config: TrainingConfig) -> TrainingConfig:
    return config.model_copy(update={"mixed_precision": "no"})


def _resumes(config: TrainingConfig, mine: TwinRun) -> Iterator[Equality]:
    """Yields those of a run that is stopped after half of its steps, with the config's own optimizer. On as many
    processes it goes on with the same masks of dropout."""
    train = config.train
    keys = ("optimizer", "momentum", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type")
    changes: dict[str, Any] = {**mine.changes, **{f"train.{key}": getattr(train, key) for key in keys}}
    # Adam divides by a gradient's own size: of one about its default epsilon that would enlarge the rounding
    changes["train.adam_epsilon"] = max(train.adam_epsilon, LEAST_EPSILON)
    changes["train.learning_rate"] = 0.1 if train.optimizer == "sgd" else 1e-3
    if train.lr_scheduler_type != "constant" and (train.warmup_steps or train.warmup_ratio):
        changes["train.warmup_steps"] = NUM_WARMUP_STEPS
    stop, measure = {"train.stop_at_step": STOP}, compared(config).measure
    straight = TwinRun("straight-dropout", changes, has_dropout=True)
    stopped = TwinRun("stopped-dropout", changes | stop, has_dropout=True)
    resumed = TwinRun("resumed", changes, stopped, has_dropout=True)
    what = f"straight = stopped and resumed, {mine.name}"
    yield Equality("resumed", what, (straight, resumed), EXACT, BIT_BY_BIT, measure)
    killed = TwinRun("killed", changes | {"train.save_steps": 1}, has_dropout=True, is_killed=True)
    revived = TwinRun("revived", changes | {"train.save_steps": 1}, killed, has_dropout=True)
    what = f"straight = killed by SIGKILL after a checkpoint and resumed, {mine.name}"
    yield Equality("killed", what, (straight, revived), EXACT, KILLS, measure)
    straight, stopped = TwinRun("straight", changes), TwinRun("stopped", changes | stop)
    accumulation = 1 if is_by_rows(config) else 2
    micro_batch = GLOBAL_BATCH if is_by_rows(config) else GLOBAL_BATCH // 4
    one = {"parallel.strategy": "single", **split_of(config, 1, micro_batch, accumulation)}
    elsewhere = TwinRun("elsewhere", changes | one, stopped)
    what = f"straight on two processes, {mine.name} = resumed on one"
    bound = compared(config).bound
    yield Equality("elsewhere", what, (straight, elsewhere), bound, ELSEWHERE, measure)
    yield _schedule(config, straight)


def _schedule(config: TrainingConfig, straight: TwinRun) -> Equality:
    """Returns the row of the learning rates, each as a share of the peak."""
    kind = config.train.lr_scheduler_type
    why = "" if kind in SHARES else f"there is no closed form here of {kind}"
    if config.plans_its_batch:
        why = "a rollout takes several steps, and logs the rate of one"
    warmup = straight.changes.get("train.warmup_steps", 0)

    def off(one: Path, _: Path) -> float:
        rates = logged_values(one / "metrics.jsonl", "learning_rate")
        if sorted(rates) != list(range(1, NUM_STEPS + 1)):
            raise ValueError(f"{one.name} has logged {len(rates)} learning rates of {NUM_STEPS}")
        shares = [_share(kind, step - 1, warmup) for step in sorted(rates)]
        peak = straight.changes["train.learning_rate"]
        return max(abs(rates[step] / peak - share) for step, share in zip(sorted(rates), shares, strict=True))

    what, runs = f"learning rates = the closed form of {kind}", (straight, straight)
    return Equality("schedule", what, runs, 1e-12, CLOSED_FORM, off, why)


def _share(kind: str, step: int, warmup: int) -> float:
    """Returns the share of the peak rate of a step, from 0."""
    return step / warmup if step < warmup else SHARES[kind]((step - warmup) / (NUM_STEPS - warmup))


def _precision(config: TrainingConfig, reference: TwinRun) -> Equality:
    why = {"no": "the run computes in float32", "fp16": "fp16 skips steps whose gradient overflows"}
    runs = reference, TwinRun("bf16", {"mixed_precision": "bf16"})
    what, reason = "float32 = bf16, but for its rounding", why.get(config.mixed_precision, "")
    if config.plans_its_batch and not reason:
        reason = "rounded probabilities draw other tokens, from which on all is otherwise"
    return Equality("bf16", what, runs, BF16_TOLERANCE, ROUNDING, largest_relative_loss_difference, reason)
