"""This module computes the logits of sequence classifiers: it knows which of their parts are the head, and where a
row's score is read.

Transformers' decoders compute logits at every position and then take those at the last id that is not the pad id, which
is the wrong position where pad and eos are one token. So their head is told the position, by the attention mask, and
returns the same logits at all positions: whichever is taken then is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from scaleup.config.data import ClassProblem
from scaleup.models.beside import base_of, unwrap
from scaleup.models.heads import ToldHead, swap_head, told

HEADS = ("score", "classifier", "classification_head", "pre_classifier", "pooler")
"""Lists Transformers' names of what comes after the layers. It is new on a model that was no classifier."""
UNQUANTIZED = (*HEADS[:-1], "pooler.dense")
"""Lists the same names, as quantized loading is told what to leave alone."""

PROBLEM_TYPES: dict[ClassProblem, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
"""Maps a problem -> what a config of Transformers calls it."""

Pooling = Literal["whole", "last", "eos"]
"""Is what a score is read from: an encoder's own pooling, a decoder's last token, or an encoder-decoder's eos token."""


class PooledHead(ToldHead):
    """Computes, where a decoder's head is told each row's last position, that position's logits for every position."""

    def answer(self, hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, S, L) of hidden states (B, S, H) at the last positions (B), repeated along S."""
        rows = torch.arange(hidden.shape[0], device=hidden.device)  # len would fix the size of an exported graph
        logits = self.logits(hidden[rows, last])
        return logits.unsqueeze(1).expand(-1, hidden.shape[1], -1)


def pool_by_mask(model: Any) -> None:
    """Lets a decoder's head read its logits at the last position of the mask. Other models stay as they are."""
    if pooling_of(model) != "last":
        return
    for module in model.score.modules():  # PEFT keeps two of them, the base's and the one that is trained
        if type(module) is nn.Linear:
            swap_head(module, PooledHead)
    if model.config.get_text_config().pad_token_id is None:
        model.config.get_text_config().pad_token_id = 0  # else Transformers refuses batches; what is taken is the same


def is_sequence_classifier(model: Any) -> bool:
    """Returns whether a model is one by its class: Transformers has one for each architecture and task."""
    return type(model).__name__.endswith("ForSequenceClassification")


def label_names(config: Any) -> tuple[str, ...]:
    """Returns the names of a classifier's labels, in the order of its logits."""
    return tuple(str(label) for _, label in sorted(config.id2label.items()))


def problem_of(config: Any) -> ClassProblem | None:
    """Returns what a classifier's logits are, where its config says it."""
    named = getattr(config, "problem_type", None)
    return next((problem for problem, name in PROBLEM_TYPES.items() if name == named), None)


def head_settings(labels: Sequence[str], problem: ClassProblem | None) -> dict[str, Any]:
    """Returns what a config of Transformers says of a head with these labels; with one score where there are none."""
    names = dict(enumerate(labels or ("LABEL_0",)))
    settings: dict[str, Any] = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    return settings | ({"problem_type": PROBLEM_TYPES[problem]} if problem else {})


def pooling_of(model: Any) -> Pooling:
    """Returns the pooling of a classifier, whose head PEFT may have wrapped."""
    if model.config.is_encoder_decoder:
        return "eos"
    head = getattr(model, "score", None)
    return "last" if isinstance(getattr(head, "original_module", head), nn.Linear) else "whole"


def classify(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the logits (B, L) in float32 of a classifier, wrapped or not, that `load_model` returned; `inputs` has
    input_ids and attention_mask (B, S). Rows may be padded with any id but an encoder-decoder's eos, on the right or,
    for decoders that get their positions, on the left."""
    whole = unwrap(model)
    heads = [module for module in whole.modules() if isinstance(module, PooledHead)]
    mask = inputs["attention_mask"]
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    options = {"use_cache": False} if heads or whole.config.is_encoder_decoder else {}
    with told(last, *heads):
        return model(**inputs, **options).logits.float()


def head_names(model: Any) -> list[str]:
    """Returns the names of the modules of a classifier that are its head."""
    return [name for name, _ in model.named_modules() if name.rpartition(".")[2] in HEADS and not _within(name)]


def is_of_head(parameter: str) -> bool:
    """Returns whether a parameter's name is one of the head's."""
    return not set(parameter.split(".")).isdisjoint(HEADS)


def _within(name: str) -> bool:
    return is_of_head(name.rpartition(".")[0])


def plain_padding(model: Any, tokenizer: Any) -> None:
    """Sets, before a model is saved, what Transformers by itself may take for padding: None where that is the eos
    token, which ends every row. Single rows then have the same score, and batches are refused, not read a token too
    early."""
    whole = base_of(model)
    if pooling_of(whole) == "last":
        pad = tokenizer.pad_token_id
        whole.config.get_text_config().pad_token_id = None if pad == tokenizer.eos_token_id else pad
