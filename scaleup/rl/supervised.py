"""Rows of one's own go in; beside each optimizer step of reinforcement learning their cross-entropy comes out, which
keeps the policy good at what it knew (PPO-ptx: Ouyang et al. 2022, eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from scaleup.config.algorithms import PolicyGradient
from scaleup.config.schema import OptimizationConfig
from scaleup.config.stages.rl import PolicyConfig
from scaleup.data.collate import Collator, WeighedBatch
from scaleup.data.dataset import source_rows
from scaleup.data.loader import Split, TrainLoader
from scaleup.data.rows import Rows
from scaleup.data.sources import MapSource
from scaleup.data.tokenization import RowEncoder
from scaleup.distributed.progress import Progress
from scaleup.distributed.runtime import Runtime


@dataclass(frozen=True)
class SupervisedTerm:
    """Gives the rows of any optimizer step."""

    loader: TrainLoader
    coef: float

    def batches(self, runtime: Runtime, step: int, total: float) -> list[WeighedBatch]:
        """Return this rank's micro-batches of an optimizer step, counted from 0, whose loss is divided by `total`."""
        batches = self.loader.batches(step)
        (count,) = runtime.sum(sum(batch.num_labels for batch in batches))
        return [WeighedBatch(batch, self.coef * total / (count or 1.0)) for batch in batches]


def read_supervised(config: PolicyConfig, encoder: RowEncoder, progress: Progress) -> list[tuple[Rows, float]]:
    """Return the rows of each source of data.supervised, as tokens, with its weight. Raises ScaleupError for rows that
    cannot be used."""
    rows = source_rows(config.data, "supervised", encoder, progress)
    return [(each, source.weight) for each, source in zip(rows, config.data.supervised or [], strict=True)]


def supervised_term(
    sources: Sequence[tuple[Rows, float]],
    collate: Collator,
    runtime: Runtime,
    settings: PolicyGradient,
    train: OptimizationConfig,
) -> SupervisedTerm:
    """Return the term of an algorithm's settings, over rows of several sources, drawn by their weights."""
    own = settings.ptx_batch_size // runtime.world
    micro_batch = math.gcd(own, train.per_device_train_batch_size or own)
    split = Split(micro_batch, own // micro_batch, runtime.rank, runtime.world)
    drawn = [MapSource(rows, [train.seed, number], shuffle=True) for number, (rows, _) in enumerate(sources)]
    weights = [weight for _, weight in sources]
    return SupervisedTerm(TrainLoader(drawn, weights, collate, split, None), settings.ptx_coef)


def supervised_loss_sum(model: Any, batch: WeighedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted cross-entropy summed over a batch's labelled tokens, a scalar, and each token's (N,) in
    nats."""
    rows = batch.rows
    logprobs = model("supervised", labels=rows.labels, places=rows.places, **rows.inputs)
    nll = -rows.places.select(logprobs)
    return batch.weight * nll.sum(), nll
