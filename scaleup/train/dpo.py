"""A policy with its reference and a batch of pairs go in; the preference loss summed over the pairs comes out. The loop
divides by the *global* number of pairs, so the split of a batch does not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from scaleup.config.stages.dpo import DPOSettings
from scaleup.data.collate import Batch, Places
from scaleup.data.tokenization import IGNORE
from scaleup.models.adapters import snapshot_adapter
from scaleup.models.beside import Beside, base_of
from scaleup.models.frozen import as_reference, switch_dropout_off
from scaleup.train.step import Objective
from scaleup.train.tally import Tally
from scaleup.train.token_head import TokenQuery, swap_token_head, token_stats

POLICY = "policy"
"""Names the submodule that is the result."""


class PolicyWithReference(Beside):
    """Holds a policy beside its reference, a frozen copy; or alone, where it is its own without its adapter, with the
    adapter as it was (`has_start`), or where no reference is asked (`is_free`): there is none, or it is cached."""

    trained_part = POLICY
    frozen_part = "reference"

    def __init__(self, policy: Any, reference: Any | None, has_start: bool = False, is_free: bool = False) -> None:
        super().__init__()
        for model in (policy, reference):
            if model is not None:
                switch_dropout_off(model)
                swap_token_head(model)
        if has_start:
            snapshot_adapter(policy)
        self.policy = policy
        self.reference: Any = None if reference is None else reference.requires_grad_(False).eval()
        self.config = base_of(policy).config
        self._has_start, self._is_free = has_start, is_free

    def forward(self, labels: torch.Tensor, places: Places, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns log-probabilities (2 B) of 2 B responses, summed over their tokens: the policy's and the reference's,
        0 where there is none."""
        query = TokenQuery(0, labels.clamp(min=0), places.flat)
        logps = torch.zeros(len(labels), device=labels.device)
        if not self._is_free:
            with torch.no_grad(), as_reference(self.policy, self.reference, self._has_start):
                logps = token_stats(self.reference or self.policy, inputs, query).logprobs.sum(dim=1)
        return token_stats(self.policy, inputs, query).logprobs.sum(dim=1), logps


def logps_of(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns log-probabilities (2 B) of a batch's responses, summed over their tokens: those of a policy, wrapped or
    not, and the reference's, which the batch holds where they are cached."""
    policy, reference = model(labels=batch.labels, places=batch.places, **batch.inputs)
    return policy, reference if batch.reference_logps is None else batch.reference_logps


def pair_logps(model: Any, batch: Batch) -> torch.Tensor:
    """Returns the policy's log-probabilities (B, 2) of each pair's responses."""
    return logps_of(model, batch)[0].view(2, -1).T


@dataclass(frozen=True)
class Pairs:
    """Holds log-probabilities (2, B) of B chosen and of B rejected responses: the policy's, and how much more likely
    they are to it than to the reference; and their lengths in tokens."""

    logps: torch.Tensor
    ratios: torch.Tensor
    lengths: torch.Tensor

    @property
    def delta(self) -> torch.Tensor:
        return self.ratios[0] - self.ratios[1]

    @property
    def mean_logps(self) -> torch.Tensor:
        """Is the policy's mean log-probability of a response's tokens."""
        return self.logps / self.lengths

    @property
    def nll(self) -> torch.Tensor:
        """Is the mean cross-entropy of the chosen response's tokens (B)."""
        return -self.mean_logps[0]


Loss = Callable[[Pairs, DPOSettings], torch.Tensor]


def _smoothed(margin: torch.Tensor, smoothing: float) -> torch.Tensor:
    return -F.logsigmoid(margin) * (1 - smoothing) - F.logsigmoid(-margin) * smoothing


def _dpo(pairs: Pairs, dpo: DPOSettings) -> torch.Tensor:
    return -F.logsigmoid(dpo.beta * pairs.delta)


def _hinge(pairs: Pairs, dpo: DPOSettings) -> torch.Tensor:
    return torch.relu(1 - dpo.beta * pairs.delta)


def _ipo(pairs: Pairs, dpo: DPOSettings) -> torch.Tensor:
    chosen, rejected = pairs.ratios / pairs.lengths
    return (chosen - rejected - 1 / (2 * dpo.beta)) ** 2


def _robust(pairs: Pairs, dpo: DPOSettings) -> torch.Tensor:
    margin, flipped = dpo.beta * pairs.delta, dpo.label_smoothing
    return (flipped * F.logsigmoid(-margin) - (1 - flipped) * F.logsigmoid(margin)) / (1 - 2 * flipped)


def _sppo(pairs: Pairs, dpo: DPOSettings) -> torch.Tensor:
    chosen, rejected = pairs.ratios
    return (chosen - 0.5 / dpo.beta) ** 2 + (rejected + 0.5 / dpo.beta) ** 2


def _orpo(pairs: Pairs, dpo: DPOSettings) -> torch.Tensor:
    chosen, rejected = pairs.mean_logps
    log_odds = chosen - rejected - (_log1mexp(chosen) - _log1mexp(rejected))
    return pairs.nll - dpo.beta * F.logsigmoid(log_odds)


def _simpo(pairs: Pairs, dpo: DPOSettings) -> torch.Tensor:
    chosen, rejected = pairs.mean_logps
    margin = dpo.beta * (chosen - rejected) - dpo.simpo_gamma
    return _smoothed(margin, dpo.label_smoothing) + dpo.cpo_alpha * pairs.nll


def _cpo(pairs: Pairs, dpo: DPOSettings) -> torch.Tensor:
    margin = dpo.beta * (pairs.logps[0] - pairs.logps[1])
    return _smoothed(margin, dpo.label_smoothing) + dpo.cpo_alpha * pairs.nll


def _sft(pairs: Pairs, dpo: DPOSettings) -> torch.Tensor:
    return pairs.nll


LOSSES: dict[str, Loss] = {
    "dpo": _dpo,
    "ipo": _ipo,
    "hinge": _hinge,
    "robust": _robust,
    "sppo": _sppo,
    "orpo": _orpo,
    "simpo": _simpo,
    "cpo": _cpo,
    "sft": _sft,
}


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """Returns log(1 - exp(x)) of x < 0, exact at both ends (Mächler 2012)."""
    x = x.clamp(max=-torch.finfo(x.dtype).tiny)
    near = x > -0.6931472
    return torch.where(
        near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.where(near, -1.0, x).exp())
    )


def pair_losses(pairs: Pairs, dpo: DPOSettings) -> torch.Tensor:
    """Returns the weighted sum of the losses of each pair (B)."""
    parts = [weight * LOSSES[name](pairs, dpo) for name, weight in zip(dpo.losses, dpo.weights, strict=True)]
    return torch.stack(parts).sum(dim=0)


def dpo_objective(dpo: DPOSettings, tally: Tally) -> Objective:
    """Return the objective of the loop, which adds TRL's metrics to a tally. Fillers count as nothing, but keep every
    rank in the same collectives."""
    by_mean = set(dpo.losses) <= {"orpo", "simpo", "sft"}  # what TRL calls logps there is a token's

    def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
        policy, reference = logps_of(model, batch)
        lengths = (batch.labels != IGNORE).sum(dim=1).view(2, -1)
        is_real = lengths[0] > 0
        logps, reference = policy.view(2, -1), reference.view(2, -1)
        pairs = Pairs(logps, logps - reference, lengths.clamp(min=1))
        with torch.no_grad():
            shown = pairs.mean_logps if by_mean else logps
            rewards = dpo.beta * (shown if by_mean else pairs.ratios)
            metrics = {
                "rewards/chosen": rewards[0],
                "rewards/rejected": rewards[1],
                "rewards/accuracies": rewards[0] > rewards[1],
                "rewards/margins": rewards[0] - rewards[1],
                "logps/chosen": shown[0],
                "logps/rejected": shown[1],
                "nll_loss": pairs.nll,
            }
            tally.add(batch.num_labels, **{name: values * is_real for name, values in metrics.items()})
        # where() and not a product: a filler's loss need not be finite
        return torch.where(is_real, pair_losses(pairs, dpo), 0.0).sum() + 0.0 * policy.sum()

    return loss_sum
