"""Trained weights go in; in training they are drawn back to where they were before it: all alike (L2-SP), or each by
how much the likelihood of old rows hangs on it (EWC).

The term's gradient is known, and added where an optimizer steps: there gradients are reduced over ranks under every
strategy, and what this rank steps, be it whole, sharded or flat, is all that it needs to keep a copy of. It comes after
clipping, as torch's own `weight_decay` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from scaleup.data.collate import Collator
from scaleup.data.loader import eval_batches
from scaleup.data.rows import Rows
from scaleup.distributed.engines import NonFiniteError, base_optimizer
from scaleup.distributed.runtime import Runtime
from scaleup.distributed.stepping import local_part, parts_of
from scaleup.errors import ScaleupError
from scaleup.models.padding import padding_known
from scaleup.train.step import Objective

ByPart = Mapping[torch.Tensor, torch.Tensor]
"""Maps what the optimizer steps on this rank -> a tensor of the same shape."""


@dataclass
class Anchor:
    """Adds weight / 2 x sum_i F_i (w_i - w0_i)^2 to what the optimizer minimises, over trained weights w that began as
    w0: with F = 1 L2-SP (Li, Grandvalet and Davoine 2018, equation 2), with the diagonal of the Fisher information of
    an old task EWC (Kirkpatrick et al. 2017, equation 3)."""

    runtime: Runtime
    weight: float
    start: ByPart
    fisher: ByPart | None
    """Holds F; None: it is 1."""
    _distances: dict[torch.Tensor, torch.Tensor] = field(default_factory=dict)
    """Holds the last step's sum of F (w - w0)^2 over each part."""

    @classmethod
    def at(cls, runtime: Runtime, model: Any, optimizer: Any, weight: float, fisher: ByPart | None = None) -> Anchor:
        """Anchors weights where they are now, and their optimizer's every step from now on."""
        start = {part: local_part(part).detach().clone() for part in runtime.stepped(model, optimizer)}
        anchor = cls(runtime, weight, start, fisher)
        base_optimizer(optimizer).register_step_pre_hook(anchor._pull)
        return anchor

    def measured(self) -> dict[str, float]:
        """Returns the term before the last step, over all ranks, which must all call it."""
        (total,) = self.runtime.sum(sum(self._distances.values(), torch.zeros((), device=self.runtime.device)))
        if not self.runtime.divides_steps:
            total /= self.runtime.world
        return {"regularization/penalty": self.weight / 2 * total}

    @torch.no_grad()
    def _pull(self, optimizer: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
        for part in parts_of(optimizer):
            if part.grad is None:
                continue
            away = local_part(part) - self.start[part]
            pull = away if self.fisher is None else away * self.fisher[part]
            self._distances[part] = torch.sum(pull * away).to(self.runtime.device)
            local_part(part.grad).add_(pull, alpha=self.weight)


def fisher_information(
    runtime: Runtime, model: Any, optimizer: Any, rows: Rows, collate: Collator, objective: Objective
) -> ByPart:
    """Return the diagonal of the empirical Fisher information: the mean over rows of the squared gradient of a row's
    log-likelihood, that of its labelled tokens together, by each trained weight. The labels are the rows' own, not
    drawn from the model (Kunstner et al. 2019, equation 3). `objective` gives minus the log-likelihood; dropout is off.

    Rows come one by one. Where each rank holds whole gradients, ranks share the rows out; where each holds a part, all
    go over every row together. Every rank must call it. Raises ScaleupError for a row whose gradient is not finite."""
    sums = {part: torch.zeros_like(local_part(part)) for part in runtime.stepped(model, optimizer)}
    shares = not runtime.divides_steps
    rank, world = (runtime.rank, runtime.world) if shares else (0, 1)

    def add(part: torch.Tensor, gradient: torch.Tensor) -> None:
        sums[part].addcmul_(gradient, gradient)

    model.eval()
    with runtime.stepping_with(model, optimizer, add):
        for number, batch in enumerate(eval_batches(rows, collate, 1, rank, world)):
            done = min(number * world, len(rows))
            runtime.progress.report("measuring which weights the old rows need", done, len(rows))
            with runtime.micro_batch(model, last=not shares), padding_known(batch.is_padded):
                runtime.backward(model, objective(model, batch.to(runtime.device)))
            try:
                runtime.update(model, optimizer, 0)
            except NonFiniteError as error:
                what = f"{error} of row {done + rank + 1}"
                raise ScaleupError.of("data.regularization", what, "look at that row, or leave it out") from error
    model.train()
    for total in sums.values():
        total.copy_(runtime.sum_tensor(total) if shares else total).div_(len(rows))
    return sums
