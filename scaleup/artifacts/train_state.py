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
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    schedule: dict[str, Any] = field(default_factory=dict)
    """Holds the learning-rate schedule's own state."""

    def note_evaluation(self, loss: float, threshold: float) -> bool:
        """Note a validation loss. Return whether it is the best so far, by more than the threshold."""
        better = self.best_loss is None or loss < self.best_loss - threshold
        if better:
            self.best_loss, self.best_step, self.evaluations_without_gain = loss, self.step, 0
        else:
            self.evaluations_without_gain += 1
        return better

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls(**read_json(path))
