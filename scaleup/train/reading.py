"""A model's facts, its tokenizer and the data section go in; what makes tokens of rows, and batches of tokens, comes
out: for texts of a language model, or texts with a classifier's class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from scaleup.config.data import DataConfig
from scaleup.data.collate import Collator
from scaleup.data.dataset import collator_for
from scaleup.data.labelled import LabelledEncoder, labelled_collator
from scaleup.data.rendering import use_template
from scaleup.data.tokenization import Encoder, RowEncoder
from scaleup.models.load import pad_token_id
from scaleup.models.scoring import Reader
from scaleup.plan.facts import ModelFacts


@dataclass(frozen=True)
class Reading:
    """Says how rows become the inputs of a model."""

    encoder: RowEncoder
    collator: Callable[[Any], Collator]
    """Makes a collator for a model: encoder-decoders shift labels each in their own way."""


def reading_of(
    facts: ModelFacts, tokenizer: PreTrainedTokenizerBase, data: DataConfig, packing: bool = False
) -> Reading:
    """Return the encoder and the collator of a model's task. A classifier's labels are its own, or those that its new
    head is to have."""
    if facts.task != "sequence_classification":
        encoder = Encoder(tokenizer, facts.task, data)
        return Reading(encoder, lambda model: language_collator(model, tokenizer, facts.task, packing))
    assert facts.pooling is not None
    reader = Reader(tokenizer, facts.pooling, max_length=data.max_length)
    targets = facts.targets
    num_targets = None if targets.problem == "single_label" else len(targets.names)
    collate = labelled_collator(reader.pad_id, reader.filler_id, num_targets)
    return Reading(LabelledEncoder(reader, targets, data), lambda model: collate)


def pair_reader(facts: ModelFacts, tokenizer: PreTrainedTokenizerBase, data: DataConfig, template: str) -> Reader:
    """Return how a reward model reads prompts and responses, through the chat template that `data` names."""
    assert facts.pooling is not None
    use_template(tokenizer, data.chat_template)
    return Reader(tokenizer, facts.pooling, template, data.max_length)


def language_collator(model: Any, tokenizer: PreTrainedTokenizerBase, task: str, packing: bool = False) -> Collator:
    """Return the collator of a language model's rows."""
    shift_right = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    return collator_for(task, pad_token_id(tokenizer), shift_right, packing)
