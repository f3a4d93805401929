"""A rollout goes in; an updated policy and metrics come out, by passes over it: minibatches of all its rows, one
optimizer step each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler

from scaleup.config.schema import OptimizationConfig
from scaleup.config.stages.ppo import PPOSettings
from scaleup.distributed.runtime import Runtime
from scaleup.models.beside import unwrap
from scaleup.plan.arithmetic import DEFAULT_BATCH_SIZE
from scaleup.rl.advantages import log_ratio, policy_loss, value_loss
from scaleup.rl.checks import check_first_ratio
from scaleup.rl.experience import Advantages, Experience, by_length, inputs_of, is_padded_for
from scaleup.train.step import StepResult, train_step
from scaleup.train.tally import Tally
from scaleup.train.token_head import at

SHUFFLES = 1
"""Is the second part of the seeds of minibatches; of the seeds of responses it is 0."""


@dataclass(frozen=True)
class MiniBatch:
    """Holds B rows of an experience, as one forward pass takes them: what `train_step` calls a batch."""

    inputs: dict[str, torch.Tensor]
    """Holds the Policy's arguments (`inputs_of`)."""
    old: dict[str, torch.Tensor]
    """Holds (B, T) each, from the rollout: logprobs, values, advantages and returns."""
    num_labels: int
    """Counts the tokens of responses."""
    num_tokens: int
    """Counts the tokens of prompts and responses."""
    is_padded: bool | None
    """Tells whether some row has padding."""

    def to(self, device: torch.device) -> MiniBatch:
        inputs, old = ({name: part.to(device) for name, part in each.items()} for each in (self.inputs, self.old))
        return replace(self, inputs=inputs, old=old)


@dataclass(frozen=True)
class Updater:
    """Takes the optimizer steps of a rollout."""

    runtime: Runtime
    model: Any
    optimizer: Any
    schedule: LRScheduler
    ppo: PPOSettings
    train: OptimizationConfig
    pad_id: int
    tolerance: float
    """Bounds the differences that self-checks let pass, in nats a token."""

    def learn(self, experience: Experience, estimates: Advantages, rollout: int) -> tuple[dict[str, float], int]:
        """Take all passes over a rollout, or fewer where the KL to the rollout's policy exceeds `target_kl`. Returns
        metrics (means over all tokens of all steps) and the number of optimizer steps. Every rank must call it."""
        self.model.train()
        whole, last = Tally(), None
        steps = 0
        for epoch in range(self.ppo.num_ppo_epochs):
            for rows in self._mini_batches(len(experience.prompts), rollout, epoch):
                tally = Tally()
                last = self._step(experience, estimates, rows, tally)
                steps += 1
                whole.add_all(tally)
                checks_ratio = steps == 1 and self.ppo.self_checks
                if not checks_ratio and self.ppo.target_kl is None:
                    continue
                means = tally.means(self.runtime)
                if checks_ratio:
                    check_first_ratio(means["log_ratio"], self.tolerance)
                if self.ppo.target_kl is not None and means["approxkl"] > self.ppo.target_kl:
                    return self._report(whole, last), steps
        assert last is not None
        return self._report(whole, last), steps

    def _step(self, experience: Experience, estimates: Advantages, rows: np.ndarray, tally: Tally) -> StepResult:
        batches: Any = list(self._micro_batches(experience, estimates, rows))

        def objective(model: Any, batch: Any) -> torch.Tensor:
            return ppo_loss_sum(model, batch, self.ppo, tally)

        result = train_step(self.runtime, self.model, self.optimizer, batches, objective, self.train.max_grad_norm)
        if not result.skipped:
            self.schedule.step()
        return result

    def _mini_batches(self, count: int, rollout: int, epoch: int) -> Iterator[np.ndarray]:
        """Return this rank's rows of each minibatch. Which rows a minibatch holds does not depend on the number of
        ranks."""
        order = np.random.default_rng([self.train.seed, SHUFFLES, rollout, epoch]).permutation(count)
        for rows in np.split(order, self.ppo.num_mini_batches):
            yield rows[self.runtime.rank :: self.runtime.world]

    def _micro_batches(self, experience: Experience, estimates: Advantages, rows: np.ndarray) -> Iterator[MiniBatch]:
        policy = unwrap(self.model)
        prompts = [experience.prompts[row].ids for row in rows]
        places = torch.from_numpy(rows)
        lengths = experience.lengths[places]
        for batch in by_length(prompts, lengths, micro_batch_size(self.train)):
            chosen, width = places[batch], int(lengths[batch].max())
            inputs = inputs_of(
                [prompts[i] for i in batch], experience.tokens[chosen], lengths[batch], self.pad_id, policy.is_seq2seq
            )
            whole = {
                "logprobs": experience.logprobs,
                "values": experience.values,
                "advantages": estimates.advantages,
                "returns": estimates.returns,
            }
            old = {name: part[chosen, :width].float() for name, part in whole.items()}
            num_labels = int(lengths[batch].sum())
            num_tokens = num_labels + int(inputs["prompt_mask"].sum())
            yield MiniBatch(inputs, old, num_labels, num_tokens, is_padded_for(policy, inputs))

    def _report(self, tally: Tally, last: StepResult) -> dict[str, float]:
        means = tally.means(self.runtime)
        return {
            "ppo/loss/policy": means["policy"],
            "ppo/loss/value": means["value"],
            "ppo/policy/clipfrac": means["clipped"],
            "ppo/val/clipfrac": means["value_clipped"],
            "ppo/policy/approxkl": means["approxkl"],
            "ppo/policy/entropy": means["entropy"],
            "ppo/val/ratio": means["ratio"],
            "grad_norm": last.grad_norm,
            "learning_rate": last.learning_rate,
        }


def micro_batch_size(train: OptimizationConfig) -> int:
    """Return the rows of a forward pass."""
    return train.per_device_train_batch_size or DEFAULT_BATCH_SIZE


def ppo_loss_sum(model: Any, batch: MiniBatch, ppo: PPOSettings, tally: Tally) -> torch.Tensor:
    """Return the objective of PPO, to be minimised: policy loss + vf_coef x value loss - entropy_coef x entropy, summed
    over the tokens of a batch's responses (Schulman et al. 2017, eq. 9). A scalar."""
    logprobs, entropies, values = model("policy", learns_entropy=ppo.entropy_coef != 0, **batch.inputs)
    places, old = batch.inputs["response_places"], batch.old
    log_ratios = log_ratio(logprobs, old["logprobs"])
    ratio = log_ratios.exp()
    by_policy, clipped = policy_loss(ratio, old["advantages"], ppo.cliprange)
    by_value, value_clipped = value_loss(values, old["values"], old["returns"], ppo.cliprange_value)
    tally.add(
        batch.num_labels,
        policy=at(places, by_policy),
        value=at(places, by_value),
        clipped=at(places, clipped),
        value_clipped=at(places, value_clipped),
        approxkl=at(places, torch.expm1(log_ratios) - log_ratios),
        entropy=at(places, entropies),
        ratio=at(places, ratio),
        log_ratio=at(places, log_ratios.abs()),
    )
    return at(places, by_policy + ppo.vf_coef * by_value - ppo.entropy_coef * entropies).sum()
