"""This module sums metrics of micro-batches where their values are, and takes their means over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from scaleup.distributed.runtime import Runtime


@dataclass
class Tally:
    """Sums metrics over this rank's tokens, or rows, of one or more steps, where the values are: nothing is read before
    `means`."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    """Holds scalars in float64."""
    count: float = 0.0

    def add(self, count: float, **values: torch.Tensor) -> None:
        self.add_sums(count, {name: value.detach().double().sum() for name, value in values.items()})

    def add_sums(self, count: float, sums: Mapping[str, torch.Tensor]) -> None:
        self.count += count
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def clear(self) -> None:
        self.sums, self.count = {}, 0.0

    def means(self, runtime: Runtime) -> dict[str, float]:
        """Return means over the tokens, or rows, of all ranks, which must all call it."""
        names = sorted(self.sums)
        *sums, count = runtime.sum(*(self.sums[name] for name in names), self.count)
        return {name: value / max(count, 1.0) for name, value in zip(names, sums, strict=True)}
