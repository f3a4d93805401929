"""Preferences and a language model go in; the model that prefers the better responses comes out, by the one loop. They
are pairs or, of KTO, single responses that are desirable or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from scaleup.config.stages.dpo import DPOConfig, DPOSettings
from scaleup.data.collate import Collator
from scaleup.data.dataset import load_training_data
from scaleup.data.preferences import PreferenceEncoder, preference_collator
from scaleup.data.tokenization import Encoder, RowEncoder
from scaleup.data.unpaired import UnpairedEncoder, unpaired_collator, with_mismatched
from scaleup.evaluation.while_training import answering
from scaleup.models.adapted import load_finished
from scaleup.models.adapters import drop_snapshot, is_adapted
from scaleup.models.beside import unwrap
from scaleup.models.load import load_tokenizer
from scaleup.train.dpo import POLICY, PolicyWithReference, dpo_objective, pair_logps
from scaleup.train.finish import TrainedModel, finish_training
from scaleup.train.fit import Feed
from scaleup.train.job import Job
from scaleup.train.kto import KTOTally, kto_objective, unpaired_logps, with_kl
from scaleup.train.model import trainable_model
from scaleup.train.reading import language_collator
from scaleup.train.reference import CachedReference, Logps
from scaleup.train.step import Objective
from scaleup.train.supervised import train_supervised
from scaleup.train.tally import Tally


@dataclass(frozen=True)
class Method:
    """Says how one kind of preferences is read and learned from."""

    encoder: Callable[[Encoder], RowEncoder]
    collator: Callable[[Collator], Collator]
    objective: Callable[[DPOSettings, Any], Objective]
    tally: type[Tally]
    logps: Logps


PAIRED = Method(PreferenceEncoder, preference_collator, dpo_objective, Tally, pair_logps)
UNPAIRED = Method(UnpairedEncoder, unpaired_collator, kto_objective, KTOTally, unpaired_logps)


def run(job: Job[DPOConfig]) -> None:
    config, plan, method = job.config, job.plan, UNPAIRED if job.config.dpo.is_unpaired else PAIRED
    job.runtime.progress.report("reading data")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    encoder = method.encoder(Encoder(tokenizer, plan.model.task, config.data))
    data = load_training_data(config, encoder, job.runtime.progress)
    if method is UNPAIRED:
        data = with_mismatched(data, config.data.max_length)
    cached = CachedReference(job, data) if config.dpo.caches_reference else None
    answers = answering(job, tokenizer, data.validation, POLICY)

    def collator(model: Any) -> Collator:
        return method.collator(language_collator(model.policy, tokenizer, plan.model.task, False))

    def feed(wrapped: Any, _: Any, rows: Feed) -> Feed:
        if cached is not None:
            cached.fill(wrapped, collator(unwrap(wrapped)), method.logps)
        rows = answers(wrapped, rows)
        return with_kl(job.runtime, wrapped, rows) if method is UNPAIRED else rows

    tally = method.tally()
    objective, rows = method.objective(config.dpo, tally), cached.data if cached else data
    done = train_supervised(job, rows, collator, objective, lambda: load_policy(job), tally, feed)
    if is_adapted(done.model.policy):
        drop_snapshot(done.model.policy)
    finish_training(job, TrainedModel(done.wrapped, tokenizer, done.state, data.left_out, POLICY))


def load_policy(job: Job[DPOConfig]) -> PolicyWithReference:
    """Loads the policy as stage `sft` would train it, and its reference where that is a copy, whose weights are read
    when the engine moves or shards them. It is the same on every rank. Raises ScaleupError as loading does."""
    config, facts = job.config, job.plan.model
    is_free, frozen = not config.dpo.needs_reference or config.dpo.caches_reference, None
    policy_is_adapted = bool(facts.adapter) or not (config.adapter is None or config.adapter.type == "selective")
    if not is_free and not policy_is_adapted:
        frozen = load_finished(config.model, facts, None, config.mixed_precision, torch.device("cpu"), deferred=True)
    policy = trainable_model(config, facts, job.runtime.device)
    is_new = config.adapter is not None and getattr(config.adapter, "path", None) is None
    has_start = policy_is_adapted and not is_free and not is_new
    return PolicyWithReference(policy, frozen, has_start, is_free)
