"""A step asks the device few things, and no more of them with more micro-batches: each time the host waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from scaleup.config.stages.distill import DistillSettings
from scaleup.config.stages.dpo import DPOSettings
from scaleup.data.collate import packed_collator
from scaleup.data.labelled import labelled_collator
from scaleup.data.pairs import pair_collator
from scaleup.data.preferences import preference_collator
from scaleup.data.tokenization import FILLER, LabelledTokens, PairTokens, PreferenceTokens, UnpairedTokens
from scaleup.data.unpaired import unpaired_collator
from scaleup.distill.classifiers import ClassifierDistillation
from scaleup.distill.language import Distillation
from scaleup.distill.train import distillation_loss
from scaleup.distributed.runtime import Runtime
from scaleup.models.padding import padding_known
from scaleup.train.classify import class_objective
from scaleup.train.dpo import PolicyWithReference, dpo_objective
from scaleup.train.head_loss import fuse_head
from scaleup.train.kto import KLEstimate, KTOTally, kto_objective
from scaleup.train.losses import token_loss_sum
from scaleup.train.preference import preference_loss
from scaleup.train.step import Objective, evaluate_loss, train_step
from scaleup.train.tally import Tally
from tests.host_reads import HostReads
from tests.unit.data import tiny

HIDDEN = DistillSettings.model_validate({"hidden": {"weight": 0.5}})
IDS = [np.arange(5, 5 + length, dtype=np.int32) for length in (4, 9, 6, 5, 7)]


def tokens(name: str, model: Any) -> tuple[Any, Sequence[Any]]:
    return tiny.collator(name, model), [*tiny.encode(name), FILLER]


def language(name: str, fused: bool = True) -> tuple[Any, Objective, Any, Sequence[Any]]:
    model = tiny.model(name)
    if fused:
        fuse_head(model)
    return model, token_loss_sum, *tokens(name, model)


def packed() -> tuple[Any, Objective, Any, Sequence[Any]]:
    model, objective, _, rows = language("llama")
    return model, objective, packed_collator(0), rows


def distilled(name: str) -> tuple[Any, Objective, Any, Sequence[Any]]:
    whole = Distillation(tiny.model(name), tiny.model(name), HIDDEN)
    return whole, distillation_loss, *tokens(name, whole.student)


def classes(name: str, teacher: bool) -> tuple[Any, Objective, Any, Sequence[Any]]:
    model, rows = tiny.classifier(name), [LabelledTokens(ids, 0) for ids in IDS]
    whole = ClassifierDistillation(model, tiny.classifier(name), HIDDEN) if teacher else model
    return (
        whole,
        distillation_loss if teacher else class_objective("single_label"),
        labelled_collator(0, 2),
        [*rows, FILLER],
    )


def pairs() -> tuple[Any, Objective, Any, Sequence[Any]]:
    rows = [PairTokens(ids, ids[::-1], 0.0) for ids in IDS]
    return tiny.classifier("llama"), preference_loss(), pair_collator(0, 2), [*rows, FILLER]


def preferred(name: str) -> tuple[Any, Objective, Any, Sequence[Any]]:
    policy = PolicyWithReference(tiny.model(name), tiny.model(name))
    rows = tiny.encode(name)
    paired = [PreferenceTokens(one, other) for one, other in zip(rows, rows[::-1], strict=True)]
    collate = preference_collator(tiny.collator(name, policy.policy))
    return policy, dpo_objective(DPOSettings(), Tally()), collate, [*paired, FILLER]


def judged() -> tuple[Any, Objective, Any, Sequence[Any]]:
    policy = PolicyWithReference(tiny.model("llama"), tiny.model("llama"))
    rows = tiny.encode("llama")
    single = [UnpairedTokens(row, place % 2 > 0, rows[place - 1]) for place, row in enumerate(rows)]
    collate = unpaired_collator(tiny.collator("llama", policy.policy))
    return policy, kto_objective(DPOSettings(loss="kto"), KTOTally()), collate, [*single, FILLER]


CASES = {
    "llama": lambda: language("llama"),
    "gpt2, all logits": lambda: language("gpt2", fused=False),
    "t5": lambda: language("t5"),
    "bart, all logits": lambda: language("bart", fused=False),
    "packed rows": packed,
    "distilled": lambda: distilled("llama"),
    "distilled encoder-decoder": lambda: distilled("t5"),
    "classes": lambda: classes("bert", teacher=False),
    "distilled classes": lambda: classes("bert", teacher=True),
    "pairs": pairs,
    "preferences": lambda: preferred("llama"),
    "preferences of an encoder-decoder": lambda: preferred("t5"),
    "single responses": judged,
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_reads_as_often_whatever_the_number_of_micro_batches(runtime: Runtime, case: str) -> None:
    """Twice on one process: the loss with what ranks agree on, and the gradient's norm. On more, the number of labels
    comes first."""
    found = []
    for sizes in ((1,), (2, 1, 1, 2)):
        model, objective, collate, rows = CASES[case]()
        prepared = runtime.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
        each = iter(rows)
        batches = [collate([next(each) for _ in range(size)]) for size in sizes]
        with HostReads() as reads:
            train_step(runtime, *prepared, batches, objective, 1.0)
        found.append(reads)
    assert [reads.count for reads in found] == [2, 2], [reads.places for reads in found]


def test_a_penalty_is_read_with_the_loss(runtime: Runtime) -> None:
    model, objective, collate, rows = language("llama")
    prepared = runtime.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batch = collate(rows[:2])
    with HostReads() as reads:
        with_it = train_step(runtime, *prepared, [batch], objective, 1.0, lambda: torch.tensor(0.25))
    assert reads.count == 2, reads.places
    model, *_ = language("llama")
    prepared = runtime.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert with_it.loss == train_step(runtime, *prepared, [batch], objective, 1.0).loss + 0.25


def test_the_divergence_of_a_step_is_read_once(runtime: Runtime) -> None:
    policy, _, collate, rows = judged()
    batches = [collate([row]) for row in rows]
    with HostReads() as reads:
        KLEstimate(runtime, policy)(batches)
    assert reads.count == 1, reads.places


def test_an_evaluation_reads_once(runtime: Runtime) -> None:
    model, objective, collate, rows = language("llama")

    batches = [collate([row]) for row in rows]
    with HostReads() as reads:
        loss = evaluate_loss(runtime, model, batches, objective)
    assert reads.count == 1, reads.places
    assert loss == pytest.approx(evaluate_loss(runtime, model, [collate(rows)], objective), rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "t5", "bert", "packed"])
@pytest.mark.parametrize("is_padded", [True, False])
@torch.no_grad()
def test_known_padding_changes_no_bit(name: str, is_padded: bool) -> None:
    """It is the same decision, taken without looking."""
    cases = {"bert": lambda: classes("bert", teacher=False), "packed": packed}
    model, _, collate, rows = cases.get(name, lambda: language(name, fused=False))()
    model.eval()
    batch = collate(rows[:3] if is_padded else rows[:1] * 2)
    assert batch.is_padded is is_padded
    options = {} if name == "bert" else {"use_cache": False}
    with HostReads() as looks:
        wanted = model(**batch.inputs, **options).logits
    with padding_known(batch.is_padded), HostReads() as knows:
        found = model(**batch.inputs, **options).logits
    assert torch.equal(found, wanted)
    assert knows.count < looks.count, "what Transformers asks has changed: see models/padding.py"
