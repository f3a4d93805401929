"""A policy with its reference and responses that are desirable or not go in; the loss of Kahneman-Tversky optimization
(KTO, Ethayarajh et al. 2024) summed over the rows comes out.

How much a response is worth is measured against z, the KL divergence of policy and reference, which is estimated before
each step from the prompts of all its rows with the responses of other rows: the split of a batch does not matter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from scaleup.config.stages.dpo import DPOSettings
from scaleup.data.collate import Batch
from scaleup.data.tokenization import IGNORE
from scaleup.data.unpaired import UnpairedBatch
from scaleup.distributed.runtime import Runtime
from scaleup.models.padding import padding_known
from scaleup.train.dpo import logps_of
from scaleup.train.fit import Feed, Loader
from scaleup.train.step import Objective
from scaleup.train.tally import Tally


class KTOTally(Tally):
    """Sums metrics over desirable and undesirable rows apart."""

    def means(self, runtime: Runtime) -> dict[str, float]:
        means = super().means(runtime)
        rewards = [means.get(f"rewards/{side}") for side in ("chosen", "rejected")]
        if None not in rewards:
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return means


def kto_losses(ratios: torch.Tensor, kl: float, is_desirable: torch.Tensor, dpo: DPOSettings) -> torch.Tensor:
    """Returns the loss of each row (B) from how much more likely its response is to the policy than to the reference,
    in nats (B), and z: equation 8 of the paper."""
    margins = torch.where(is_desirable, ratios - kl, kl - ratios)
    weights = torch.where(is_desirable, dpo.desirable_weight, dpo.undesirable_weight)
    return weights * (1 - torch.sigmoid(dpo.beta * margins))


def kto_objective(dpo: DPOSettings, tally: KTOTally) -> Objective:
    """Return the objective of the loop, which adds TRL's metrics to a tally. Fillers count as nothing, but keep every
    rank in the same collectives."""

    def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
        assert isinstance(batch, UnpairedBatch)
        policy, reference = logps_of(model, batch)
        is_real = (batch.labels != IGNORE).any(dim=1)
        ratios = policy - reference
        with torch.no_grad():
            for side, rows in (("chosen", is_real & batch.is_desirable), ("rejected", is_real & ~batch.is_desirable)):
                shown = {f"rewards/{side}": dpo.beta * ratios * rows, f"logps/{side}": policy * rows}
                tally.add(rows.sum(), **shown)
            tally.add(batch.num_labels, kl=torch.full_like(policy, batch.kl) * is_real)
        losses = kto_losses(ratios, batch.kl, batch.is_desirable, dpo)
        return torch.where(is_real, losses, 0.0).sum() + 0.0 * policy.sum()

    return loss_sum


def unpaired_logps(model: Any, batch: Batch) -> torch.Tensor:
    """Returns the policy's log-probabilities (B, 2) of each row's response and of the other row's."""
    assert isinstance(batch, UnpairedBatch) and batch.mismatched is not None
    return torch.stack([logps_of(model, each)[0] for each in (batch, batch.mismatched)], dim=1)


def with_kl(runtime: Runtime, model: Any, feed: Feed) -> Feed:
    """Returns a feed whose batches know z of their step, or of all validation rows. `model` is the policy under the
    run's strategy."""
    estimate = KLEstimate(runtime, model)
    held_out = feed.validation

    def validation() -> Iterator[Batch]:
        assert held_out is not None
        kl = estimate(held_out())
        return (replace(batch, kl=kl) for batch in held_out() if isinstance(batch, UnpairedBatch))

    loader = _KLLoader(feed.loader, estimate)
    return replace(feed, loader=loader, validation=None if held_out is None else validation)


@dataclass(frozen=True)
class _KLLoader:
    loader: Loader
    estimate: KLEstimate

    def batches(self, step: int) -> Sequence[Batch]:
        batches = self.loader.batches(step)
        kl = self.estimate(batches)
        return [replace(batch, kl=kl) for batch in batches if isinstance(batch, UnpairedBatch)]


@dataclass(frozen=True)
class KLEstimate:
    """Estimates z from mismatched responses: the mean of their log-ratios over the rows of all ranks, and not less than
    0 (section 4.1 of the paper). The policy does not learn from them."""

    runtime: Runtime
    model: Any

    @torch.no_grad()
    def __call__(self, batches: Iterable[Batch]) -> float:
        """Return z in nats a response. Every rank must call it, with as many batches."""
        total, count = torch.zeros((), dtype=torch.float64, device=self.runtime.device), 0.0
        was_training = self.model.training
        self.model.eval()
        for batch in batches:
            assert isinstance(batch, UnpairedBatch) and batch.mismatched is not None
            self.runtime.progress.enter_phase("estimating the KL divergence")
            with padding_known(batch.mismatched.is_padded):
                policy, reference = logps_of(self.model, batch.mismatched.to(self.runtime.device))
            total += (policy - reference).sum()  # of a filler that is 0
            count += batch.num_labels
        self.model.train(was_training)
        kl, rows = self.runtime.sum(total, count)
        return max(kl / max(rows, 1.0), 0.0)
