"""Pairs of responses and a language model go in; the model that prefers the chosen ones comes out, by the one loop."""

from __future__ import annotations

from typing import Any

import torch

from scaleup.config.stages.dpo import DPOConfig
from scaleup.data.collate import Collator
from scaleup.data.dataset import load_training_data
from scaleup.data.preferences import PreferenceEncoder, preference_collator
from scaleup.data.tokenization import Encoder
from scaleup.models.adapted import load_finished
from scaleup.models.adapters import drop_snapshot, is_adapted
from scaleup.models.load import load_tokenizer
from scaleup.train.dpo import POLICY, PolicyWithReference, dpo_objective
from scaleup.train.finish import TrainedModel, finish_training
from scaleup.train.job import Job
from scaleup.train.model import trainable_model
from scaleup.train.reading import language_collator
from scaleup.train.supervised import train_supervised
from scaleup.train.tally import Tally


def run(job: Job[DPOConfig]) -> None:
    config, plan = job.config, job.plan
    job.runtime.progress.report("reading data")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    encoder = PreferenceEncoder(Encoder(tokenizer, plan.model.task, config.data))
    data = load_training_data(config, encoder, job.runtime.progress)

    def collator(model: Any) -> Collator:
        return preference_collator(language_collator(model.policy, tokenizer, plan.model.task, False))

    tally = Tally()
    objective = dpo_objective(config.dpo, tally)
    done = train_supervised(job, data, collator, objective, lambda: load_policy(job), tally)
    if is_adapted(done.model.policy):
        drop_snapshot(done.model.policy)
    finish_training(job, TrainedModel(done.wrapped, tokenizer, done.state, data.left_out, POLICY))


def load_policy(job: Job[DPOConfig]) -> PolicyWithReference:
    """Loads the policy as stage `sft` would train it, and its reference where that is a copy, whose weights are read
    when the engine moves or shards them. It is the same on every rank. Raises ScaleupError as loading does."""
    config, facts = job.config, job.plan.model
    is_free, frozen = not config.dpo.needs_reference, None
    policy_is_adapted = bool(facts.adapter) or not (config.adapter is None or config.adapter.type == "selective")
    if not is_free and not policy_is_adapted:
        frozen = load_finished(config.model, facts, None, config.mixed_precision, torch.device("cpu"), deferred=True)
    policy = trainable_model(config, facts, job.runtime.device)
    is_new = config.adapter is not None and getattr(config.adapter, "path", None) is None
    has_start = policy_is_adapted and not is_free and not is_new
    return PolicyWithReference(policy, frozen, has_start, is_free)
