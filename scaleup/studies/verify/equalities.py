"""A config goes in; the equalities that its runs are to have come out: when each is due, the two runs of a twin that it
is between, and how far they may be apart, with what says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaleup.artifacts.differences import (
    largest_loss_difference,
    largest_relative_loss_difference,
    largest_weight_difference,
)
from scaleup.artifacts.metrics_log import logged_values
from scaleup.config.stages.base import SupervisedConfig
from scaleup.plan.compat import STRATEGIES, cell_of, verdict
from scaleup.plan.extras import strategy_problems
from scaleup.studies.verify.twin import GLOBAL_BATCH, LEARNING_RATES, NUM_STEPS, is_by_rows, split_of

REFERENCE = "reference"
TOLERANCE, EXACT, BF16_TOLERANCE = 1e-5, 0.0, 2**-8
IN_FLOAT32 = "float32 sums in another order differ by about 1e-6: tests/invariants/test_one_trajectory.py"
BIT_BY_BIT = "the same sums in the same order: tests/invariants/test_resume.py"
ELSEWHERE = "float32 sums in another order: tests/invariants/test_resume_elsewhere.py"
ROUNDING = "one unit in bfloat16's last place, of the loss: tests/invariants/test_one_trajectory.py"
MOVES = "100 times the bound of the others, which would hold for weights that never move"
PUT_TOGETHER = "rows are put together by their lengths, so that another micro-batch is another step"
STOP = NUM_STEPS // 2


@dataclass(frozen=True)
class TwinRun:
    """Stands for one run of a twin: what it has otherwise than the reference."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    goes_on_from: TwinRun | None = None
    """Is the run whose folder it takes up, in a copy."""

    @property
    def chain(self) -> list[TwinRun]:
        """Returns the runs that have to be made for it, in order."""
        return [*(self.goes_on_from.chain if self.goes_on_from else []), self]

    @property
    def stops(self) -> bool:
        """Tells whether it ends before its last step."""
        return "train.stop_at_step" in self.changes


@dataclass(frozen=True)
class Equality:
    """Stands for one row of the table: two runs, and how far they may be apart."""

    name: str
    what: str
    runs: tuple[TwinRun, TwinRun]
    bound: float
    source: str
    """Tells where the bound comes from."""
    measure: Callable[[Path, Path], float]
    """Maps two run folders -> how far they are apart. Raises ValueError where they cannot be compared."""
    not_due: str = ""
    """Tells why it need not hold here."""
    is_least: bool = False
    """Tells that the bound is what has to be reached."""

    def holds(self, deviation: float) -> bool:
        return deviation >= self.bound if self.is_least else deviation <= self.bound


def trajectories(one: Path, other: Path) -> float:
    """Returns the largest difference of a loss or of a weight of two runs."""
    return max(largest_loss_difference(one, other), largest_weight_difference(one, other))


def equalities_of(config: SupervisedConfig) -> list[Equality]:
    """Returns the equalities of a supervised config's twins, in the order in which they are shown."""
    reference = TwinRun(REFERENCE)
    own = config.parallel.strategy
    own = "ddp" if own in ("auto", "single") else own
    mine = under(config, own)
    return [
        _moves(config, reference),
        Equality("processes", f"one process = two, {own}", (reference, mine), TOLERANCE, IN_FLOAT32, trajectories),
        *_splits(config, reference),
        *(_strategy(config, reference, name) for name in STRATEGIES if name not in ("single", own)),
        *_resumes(config, mine),
        _precision(config, reference),
    ]


def under(config: SupervisedConfig, strategy: str) -> TwinRun:
    """Returns the run of a twin on two processes under a strategy."""
    micro_batch = GLOBAL_BATCH // 2 if is_by_rows(config) else GLOBAL_BATCH // 4
    changes = {"parallel.strategy": strategy, **_sized(config, split_of(2, micro_batch, 1))}
    if strategy == config.parallel.strategy:
        offloads = ("offload_optimizer", "offload_parameters")
        changes |= {f"parallel.{key}": getattr(config.parallel, key) for key in offloads}
    return TwinRun(strategy, changes)


def _sized(config: SupervisedConfig, split: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how a step is split; by tokens there is no number of rows in it."""
    by_tokens = config.train.tokens_per_device is not None
    return {key: value for key, value in split.items() if not by_tokens or "batch_size" not in key}


def _moves(config: SupervisedConfig, reference: TwinRun) -> Equality:
    kind = getattr(config.adapter, "type", "")
    rate, clip = LEARNING_RATES.get(kind, 0.1), config.train.max_grad_norm

    def moved(one: Path, _: Path) -> float:
        norms = logged_values(one / "metrics.jsonl", "grad_norm").values()
        if not norms:
            raise ValueError(f"{one.name} has logged no gradient")
        return rate * min(max(norms), clip or max(norms))

    what = "the twin learns: its largest step"
    return Equality("learns", what, (reference, reference), 100 * TOLERANCE, MOVES, moved, is_least=True)


def _splits(config: SupervisedConfig, reference: TwinRun) -> Iterator[Equality]:
    why = "" if is_by_rows(config) else PUT_TOGETHER
    others = {
        "accumulation": ("one batch = two accumulated", split_of(1, GLOBAL_BATCH // 2, 2)),
        "micro-batch": (f"{GLOBAL_BATCH} rows at once = one at a time", split_of(1, 1, GLOBAL_BATCH)),
    }
    for name, (what, split) in others.items():
        runs = reference, TwinRun(name, split)
        yield Equality(name, what, runs, TOLERANCE, IN_FLOAT32, trajectories, why)
    runs = reference, TwinRun("checkpointing", {"gradient_checkpointing": True})
    what = "activations kept = computed again"
    yield Equality("checkpointing", what, runs, TOLERANCE, IN_FLOAT32, trajectories)


def _strategy(config: SupervisedConfig, reference: TwinRun, strategy: str) -> Equality:
    answer, missing = verdict(cell_of(_in_float32(config), strategy)), list(strategy_problems(strategy))
    why = answer.reason if answer.status == "refused" else missing[0].what if missing else ""
    runs = reference, under(config, strategy)
    return Equality(strategy, f"single = {strategy}", runs, TOLERANCE, IN_FLOAT32, trajectories, why)


def _in_float32(config: SupervisedConfig) -> SupervisedConfig:
    return config.model_copy(update={"mixed_precision": "no"})


def _resumes(config: SupervisedConfig, mine: TwinRun) -> Iterator[Equality]:
    """Yields those of a run that is stopped after half of its steps, with the config's own optimizer."""
    train = config.train
    keys = ("optimizer", "momentum", "adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type")
    changes: dict[str, Any] = {f"train.{key}": getattr(train, key) for key in keys}
    if train.optimizer == "adamw":
        changes["train.learning_rate"] = 1e-3
    straight = TwinRun("straight", {**mine.changes, **changes})
    stopped = TwinRun("stopped", {**straight.changes, "train.stop_at_step": STOP})
    resumed = TwinRun("resumed", straight.changes, stopped)
    what = f"straight = stopped and resumed, {mine.name}"
    yield Equality("resumed", what, (straight, resumed), EXACT, BIT_BY_BIT, trajectories)
    accumulation = 1 if is_by_rows(config) else 2
    micro_batch = GLOBAL_BATCH if is_by_rows(config) else GLOBAL_BATCH // 4
    one = {"parallel.strategy": "single", **_sized(config, split_of(1, micro_batch, accumulation))}
    elsewhere = TwinRun("elsewhere", {**changes, **one}, stopped)
    what = f"straight on two processes, {mine.name} = resumed on one"
    yield Equality("elsewhere", what, (straight, elsewhere), TOLERANCE, ELSEWHERE, trajectories)


def _precision(config: SupervisedConfig, reference: TwinRun) -> Equality:
    why = {"no": "the run computes in float32", "fp16": "fp16 skips steps whose gradient overflows"}
    runs = reference, TwinRun("bf16", {"mixed_precision": "bf16"})
    what, reason = "float32 = bf16, but for its rounding", why.get(config.mixed_precision, "")
    return Equality("bf16", what, runs, BF16_TOLERANCE, ROUNDING, largest_relative_loss_difference, reason)
