"""This module keeps where a training run stands, apart from tensors: small enough for a JSON file in each
checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from scaleup.artifacts.files import read_json, write_json


@dataclass
class TrainState:
    step: int = 0
    """Counts the optimizer steps done. The data position follows from it."""
    num_tokens: int = 0
    best_metric: float | None = None
    """Is the best value so far of what the run goes by: the validation loss, or another metric."""
    best_step: int | None = None
    evaluations_without_gain: int = 0
    schedule: dict[str, Any] = field(default_factory=dict)
    """Holds the learning-rate schedule's own state."""

    def note_evaluation(self, value: float, threshold: float, greater_is_better: bool = False) -> bool:
        """Note a validation loss, or another metric. Return whether it is the best so far, by more than the
        threshold."""
        sign = -1 if greater_is_better else 1
        better = self.best_metric is None or sign * value < sign * self.best_metric - threshold
        if better:
            self.best_metric, self.best_step, self.evaluations_without_gain = value, self.step, 0
        else:
            self.evaluations_without_gain += 1
        return better

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls(**read_json(path))
