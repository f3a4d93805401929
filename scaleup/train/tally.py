"""This module sums metrics of micro-batches where their values are, and takes their means over all ranks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from scaleup.distributed.runtime import Runtime


@dataclass
class Tally:
    """Sums metrics over this rank's tokens, or rows, of one or more steps, where the values are: nothing is read before
    `means`."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    """Holds scalars in float64."""
    counts: dict[str, float | torch.Tensor] = field(default_factory=dict)
    """Counts the tokens, or rows, that each sum is over: on the host where it knows them."""

    def add(self, count: float | torch.Tensor, **values: torch.Tensor) -> None:
        for name, value in values.items():
            self._add(name, value.detach().double().sum(), count)

    def add_all(self, other: Tally) -> None:
        for name, value in other.sums.items():
            self._add(name, value, other.counts[name])

    def _add(self, name: str, value: torch.Tensor, count: float | torch.Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + count

    def clear(self) -> None:
        self.sums, self.counts = {}, {}

    def means(self, runtime: Runtime) -> dict[str, float]:
        """Return means over the tokens, or rows, of all ranks, which must all call it; nothing of what there was none
        of."""
        names = sorted(self.sums)
        found = runtime.sum(*(self.sums[name] for name in names), *(self.counts[name] for name in names))
        both = zip(names, found[: len(names)], found[len(names) :], strict=True)
        return {name: value / count for name, value, count in both if count}
