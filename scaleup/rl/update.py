"""A rollout goes in; an updated policy and metrics come out, by passes over it: minibatches of all its rows, one
optimizer step each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler

from scaleup.config.algorithms import RolloutSettings
from scaleup.config.schema import OptimizationConfig
from scaleup.data.collate import WeighedBatch
from scaleup.distributed.runtime import Runtime
from scaleup.models.beside import unwrap
from scaleup.plan.arithmetic import DEFAULT_BATCH_SIZE
from scaleup.rl.algorithms import Algorithm, Estimates
from scaleup.rl.checks import check_first_ratio
from scaleup.rl.experience import Experience, by_length, inputs_of, is_padded_for
from scaleup.rl.losses import of_high_entropy, token_weights
from scaleup.rl.supervised import SupervisedTerm, supervised_loss_sum
from scaleup.train.step import StepResult, train_step
from scaleup.train.tally import Tally
from scaleup.train.token_head import at

SHUFFLES = 1
"""Is the second part of the seeds of minibatches; of the seeds of responses it is 0."""


@dataclass(frozen=True)
class MicroBatch:
    """Holds B rows of a mini-batch, as one forward pass takes them: what `train_step` calls a batch."""

    inputs: dict[str, torch.Tensor]
    """Holds the Policy's arguments (`inputs_of`)."""
    old: dict[str, torch.Tensor]
    """Holds (B, T) each, from the rollout: what an algorithm's loss takes; `weights` where tokens do not count alike;
    `counted` where some count for nothing; `importance` where an engine of its own drew them."""
    num_labels: float
    """Is this part's share of what the sum of losses is divided by."""
    num_targets: int
    """Counts the tokens of responses."""
    num_tokens: int
    """Counts the tokens of prompts and responses."""
    is_padded: bool | None
    """Tells whether some row has padding."""
    entropy_weight: float
    """Is the weight of a token's entropy: the bonus is a mean over tokens, whatever the losses are a mean of."""

    def to(self, device: torch.device) -> MicroBatch:
        inputs, old = ({name: part.to(device) for name, part in each.items()} for each in (self.inputs, self.old))
        return replace(self, inputs=inputs, old=old)


@dataclass(frozen=True)
class Updater:
    """Takes the optimizer steps of a rollout."""

    runtime: Runtime
    model: Any
    optimizer: Any
    schedule: LRScheduler
    algorithm: Algorithm
    rollouts: RolloutSettings
    train: OptimizationConfig
    pad_id: int
    tolerance: float
    """Bounds the differences that self-checks let pass, in nats a token."""
    supervised: SupervisedTerm | None = None
    """Gives rows that are learned beside."""

    def learn(self, experience: Experience, estimates: Estimates, rollout: int) -> tuple[dict[str, float], int]:
        """Take all passes over a rollout, or fewer where the KL to the rollout's policy exceeds `target_kl`. Returns
        metrics (means over all tokens of all steps) and the number of optimizer steps. Every rank must call it."""
        self.model.train()
        whole, last = Tally(), None
        steps, before = 0, rollout * self.rollouts.num_passes * self.rollouts.num_mini_batches
        for epoch in range(self.rollouts.num_passes):
            for rows in self._mini_batches(len(experience.prompts), rollout, epoch):
                tally = Tally()
                last = self._step(experience, estimates, rows, tally, before + steps)
                steps += 1
                whole.add_all(tally)
                checks_ratio = steps == 1 and self.rollouts.self_checks
                if not checks_ratio and self.rollouts.target_kl is None:
                    continue
                means = tally.means(self.runtime)
                if checks_ratio:
                    check_first_ratio(means["log_ratio"], self.tolerance)
                if self.rollouts.target_kl is not None and means["approxkl"] > self.rollouts.target_kl:
                    return self._report(whole, last), steps
        assert last is not None
        return self._report(whole, last), steps

    def _step(
        self, experience: Experience, estimates: Estimates, rows: np.ndarray, tally: Tally, step: int
    ) -> StepResult:
        """Take the run's optimizer step `step` on a mini-batch, of which this rank learns its share of the rows."""
        batches: Any = list(self._micro_batches(experience, estimates, rows))
        if self.supervised is not None:  # first: the last backward pass is to reach all parameters
            (total,) = self.runtime.sum(sum(batch.num_labels for batch in batches))
            batches = [*self.supervised.batches(self.runtime, step, total), *batches]

        def objective(model: Any, batch: Any) -> torch.Tensor:
            if isinstance(batch, WeighedBatch):
                loss, nll = supervised_loss_sum(model, batch)
                tally.add(len(nll), supervised=nll)
                return loss
            return policy_loss_sum(model, batch, self.algorithm, tally)

        result = train_step(self.runtime, self.model, self.optimizer, batches, objective, self.train.max_grad_norm)
        if not result.skipped:
            self.schedule.step()
        return result

    def _mini_batches(self, count: int, rollout: int, epoch: int) -> Iterator[np.ndarray]:
        """Return the rows of each mini-batch, which do not depend on the number of ranks."""
        order = np.random.default_rng([self.train.seed, SHUFFLES, rollout, epoch]).permutation(count)
        yield from np.split(order, self.rollouts.num_mini_batches)

    def _micro_batches(self, experience: Experience, estimates: Estimates, rows: np.ndarray) -> Iterator[MicroBatch]:
        """Return this rank's share of a mini-batch. What tokens count, and what their sum is divided by, follows from
        all rows of the mini-batch."""
        policy, settings, old = unwrap(self.model), self.algorithm.settings, self._old(experience, estimates)
        whole = torch.from_numpy(rows)
        mask = experience.mask[whole]
        if settings.mask_truncated_completions:
            mask = mask & experience.finished[whole][:, None]
        weights, counts = token_weights(mask, settings.loss_type, self.rollouts.max_new_tokens)
        kept = mask
        if settings.top_entropy_quantile < 1:
            assert experience.entropies is not None, "needs_logprobs tells so"
            kept = of_high_entropy(experience.entropies[whole], mask, settings.top_entropy_quantile)
        filters = settings.mask_truncated_completions or settings.top_entropy_quantile < 1
        extra = {} if weights is None else {"weights": weights}
        extra |= {"counted": mask, "kept": kept} if filters else {}
        if experience.importance is not None:
            extra["importance"] = experience.importance[whole]
        entropy_weight = settings.entropy_coef * float(counts.sum()) / max(1, int(kept.sum()))

        share = np.arange(self.runtime.rank, len(rows), self.runtime.world)
        prompts = [experience.prompts[row].ids for row in rows[share]]
        lengths = experience.lengths[whole[share]]
        for batch in by_length(prompts, lengths, micro_batch_size(self.train)):
            in_rows = torch.from_numpy(share[batch])
            chosen, width = whole[in_rows], int(lengths[batch].max())
            own = [prompts[i] for i in batch]
            inputs = inputs_of(own, experience.tokens[chosen], lengths[batch], self.pad_id, policy.is_seq2seq)
            parts = {name: part[chosen, :width].float() for name, part in old.items()}
            parts |= {name: part[in_rows, :width].float() for name, part in extra.items()}
            num_targets = int(lengths[batch].sum())
            yield MicroBatch(
                inputs=inputs,
                old=parts,
                num_labels=float(counts[in_rows].sum()),
                num_targets=num_targets,
                num_tokens=num_targets + int(inputs["prompt_mask"].sum()),
                is_padded=is_padded_for(policy, inputs),
                entropy_weight=entropy_weight,
            )

    def _old(self, experience: Experience, estimates: Estimates) -> dict[str, torch.Tensor]:
        """Return what the losses take of a rollout, (N, T) each."""
        parts = {
            "logprobs": experience.logprobs,
            "advantages": estimates.advantages,
            "values": experience.values,
            "returns": estimates.returns,
            "ref_logprobs": experience.ref_logprobs if self.algorithm.settings.kl_in == "loss" else None,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _report(self, tally: Tally, last: StepResult) -> dict[str, float]:
        """Return means over all tokens of all steps, and what is known of the last step."""
        return {**tally.means(self.runtime), "grad_norm": last.grad_norm, "learning_rate": last.learning_rate}


def micro_batch_size(train: OptimizationConfig) -> int:
    """Return the rows of a forward pass."""
    return train.per_device_train_batch_size or DEFAULT_BATCH_SIZE


def policy_loss_sum(model: Any, batch: MicroBatch, algorithm: Algorithm, tally: Tally) -> torch.Tensor:
    """Return an algorithm's objective, to be minimised: the weighted sum of its losses over the tokens of a batch's
    responses, less that of entropies. A scalar."""
    logprobs, entropies, values = model("policy", learns_entropy=batch.entropy_weight != 0, **batch.inputs)
    places, mask = batch.inputs["response_places"], batch.inputs["response_mask"]
    # without those of the rollout this is its only step, by the policy that drew it
    terms = algorithm.loss(logprobs, values, {"logprobs": logprobs.detach(), **batch.old}, mask)
    shown = dict(terms.shown)
    log_ratios = shown.pop("log_ratios")
    shown |= {
        "approxkl": torch.expm1(log_ratios) - log_ratios,
        "entropy": entropies,
        "log_ratio": log_ratios.abs(),
    }
    if "ref_logprobs" in batch.old:
        shown["log_ratio_to_reference"] = (logprobs - batch.old["ref_logprobs"]).detach()
    tally.add(batch.num_targets, **{name: at(places, part) for name, part in shown.items()})
    loss, bonus = terms.loss, batch.entropy_weight * entropies
    for name in ("weights", "counted", "importance"):
        loss = loss * batch.old[name] if name in batch.old else loss
    bonus = bonus * batch.old["kept"] if "kept" in batch.old else bonus
    return at(places, loss - bonus).sum()
