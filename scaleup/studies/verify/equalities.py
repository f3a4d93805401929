"""This module holds what an equality is: two runs of a twin, how far they may be apart, and what says so; and how runs
are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaleup.artifacts.differences import (
    largest_loss_difference,
    largest_metric_difference,
    largest_weight_difference,
)
from scaleup.config.stages.base import TrainingConfig

REFERENCE = "reference"
TOLERANCE, ROLLOUT_TOLERANCE = 1e-5, 5e-5
IN_FLOAT32 = "float32 sums in another order differ by about 1e-6: tests/invariants/test_one_trajectory.py"
IN_ROLLOUTS = "three times 16 log-probabilities (a KL over 8 tokens), each off by 1e-6: tests/distributed/test_ppo.py"
COUNTED = ("time/", "memory", "clip_ratio", "ppo/policy/clipfrac", "ppo/val/clipfrac")
"""Begin the names of metrics that depend on the machine, and of counts, which rounding may change by one."""


class NotDue(Exception):
    """Tells why an equality cannot be measured, which its runs alone show."""


@dataclass(frozen=True)
class TwinRun:
    """Stands for one run of a twin: what it has otherwise than the reference."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    goes_on_from: TwinRun | None = None
    """Is the run whose folder it takes up, in a copy."""
    has_dropout: bool = False
    """Tells whether its model, and its LoRA, drop out."""
    exports: TwinRun | None = None
    """Is the run whose model it exports: then it is no training."""
    is_killed: bool = False
    """Tells that all of its processes are killed at once, some time after its first checkpoint."""

    @property
    def chain(self) -> list[TwinRun]:
        """Returns the trainings that have to be made for it, in order."""
        before = self.goes_on_from or self.exports
        return [*(before.chain if before else []), *([] if self.exports else [self])]

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
    """Maps two run folders -> how far they are apart. Raises ValueError where they cannot be compared, and NotDue."""
    not_due: str = ""
    """Tells why it need not hold here."""
    is_least: bool = False
    """Tells that the bound is what has to be reached."""
    refused_by: str = ""
    """Is the key at which a run ends by itself where the equality does not hold."""

    def holds(self, deviation: float) -> bool:
        return deviation >= self.bound if self.is_least else deviation <= self.bound


def trajectories(one: Path, other: Path) -> float:
    """Returns the largest difference of a loss or of a weight of two runs."""
    return max(largest_loss_difference(one, other), largest_weight_difference(one, other))


def rollouts_apart(one: Path, other: Path) -> float:
    """Returns the largest difference of a metric of a rollout, or of a weight, of two runs."""
    values = "values/*.safetensors"
    of_values = largest_weight_difference(one, other, values) if (one / "values").is_dir() else 0.0
    return max(largest_metric_difference(one, other, COUNTED), largest_weight_difference(one, other), of_values)


@dataclass(frozen=True)
class Compared:
    """Says how two runs of a config are compared whose sums are the same but for their order."""

    measure: Callable[[Path, Path], float]
    bound: float
    source: str


def compared(config: TrainingConfig) -> Compared:
    """Returns how runs of a config's stage are compared."""
    if config.plans_its_batch:
        return Compared(rollouts_apart, ROLLOUT_TOLERANCE, IN_ROLLOUTS)
    return Compared(trajectories, TOLERANCE, IN_FLOAT32)


def alike(config: TrainingConfig, name: str, what: str, runs: tuple[TwinRun, TwinRun], not_due: str = "") -> Equality:
    """Returns the equality of two runs whose sums are the same but for their order."""
    how = compared(config)
    return Equality(name, what, runs, how.bound, how.source, how.measure, not_due)
