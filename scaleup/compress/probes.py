"""This module makes inputs (probes) from a model's facts or from rows, and compares two models' logits on them, to tell
whether they are one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from scaleup.config.data import DataConfig
from scaleup.data.sources import read_source
from scaleup.data.tokenization import Encoder, Tokens
from scaleup.errors import ScaleupError
from scaleup.models.beside import base_of
from scaleup.models.classifier import classify, is_sequence_classifier
from scaleup.models.scoring import Reader
from scaleup.plan.facts import ModelFacts
from scaleup.records.examples import example_maker, row_problem

Probe = Mapping[str, torch.Tensor]
"""Holds a model's keyword arguments for one sequence, (1, S) each."""

NUM_DRAWN = 4
DRAWN_LENGTH = 32
ROW_LENGTH = 64
"""Is how many tokens of a row are compared, at most."""
SEED = 0


def drawn_probes(facts: ModelFacts, tokenizer: PreTrainedTokenizerBase | None = None) -> list[Probe]:
    """Returns probes of token ids drawn from all of the model's vocabulary, the same each time. With a classifier's
    tokenizer they end as each row that it reads."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (NUM_DRAWN, 2, min(DRAWN_LENGTH, facts.max_positions or DRAWN_LENGTH))
    ids = torch.randint(facts.vocab_size, shape, generator=generator)
    if tokenizer is not None and facts.pooling is not None:
        end = Reader(tokenizer, facts.pooling).ended
        return [{"input_ids": torch.tensor([end(source.tolist())[-len(source) :]])} for source, _ in ids]
    return [_probe(facts, source, target) for source, target in ids]


def row_probes(data: DataConfig, num_rows: int, tokenizer: PreTrainedTokenizerBase, facts: ModelFacts) -> list[Probe]:
    """Returns the beginnings of the first rows of data.test. Raises ScaleupError for a row that cannot be used."""
    encoder = Encoder(tokenizer, facts.task, data.model_copy(update={"too_long": "truncate"}))
    sources = ((source, row) for source in data.test or [] for row in read_source(data, source, "test", data.streaming))
    probes = []
    for index, (source, (where, values)) in enumerate(islice(sources, num_rows)):
        try:
            rows = encoder([example_maker(data, source)(values, index)])
        except ScaleupError as error:
            raise ScaleupError(row_problem(where, error)) from None
        probes += [_of_row(facts, row) for row in rows if row is not None]
    return probes


def _of_row(facts: ModelFacts, row: Tokens) -> Probe:
    length = min(ROW_LENGTH, facts.max_positions or ROW_LENGTH)
    source, target = (torch.tensor(ids[:length], dtype=torch.long) for ids in (row.input_ids, row.labels))
    return _probe(facts, source, target)


def _probe(facts: ModelFacts, source: torch.Tensor, target: torch.Tensor) -> Probe:
    """Returns a probe of source ids (S); an encoder-decoder model's decoder gets the target ids (T)."""
    probe = {"input_ids": source[None]}
    return probe | ({"decoder_input_ids": target[None]} if facts.task == "seq2seq_lm" else {})


@torch.no_grad()
def logits_on(model: Any, probes: Sequence[Probe], device: torch.device) -> list[torch.Tensor]:
    """Returns the logits for each probe, on the CPU in float32: (1, S, V) of a language model, (1, L) of a
    classifier."""
    model.eval()
    logits = []
    for probe in probes:
        inputs = {name: ids.to(device) for name, ids in probe.items()}
        logits.append(_logits(model, inputs).float().cpu())
    return logits


def _logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    whole = base_of(model)
    if is_sequence_classifier(whole):
        return classify(model, inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])})
    return model(**inputs, use_cache=False).logits


def difference(logits: Sequence[torch.Tensor], true: Sequence[torch.Tensor]) -> float:
    """Returns the largest difference of a logit, as a share of the largest of the true ones; NaN where a logit is
    NaN."""
    largest = torch.stack([part.abs().max() for part in true]).max()
    furthest = torch.stack([(one - other).abs().max() for one, other in zip(logits, true, strict=True)]).max()
    return float(furthest / largest)
