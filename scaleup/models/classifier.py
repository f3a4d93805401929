"""Sequence classifiers: which of their parts are the head, and where a row's score is read.

Transformers' decoders give logits at every position and then take those at the last id that is not the pad id, which is
the wrong place where pad and eos are one token. So their head is told the place, by the attention mask, and gives the
same logits at all positions: whichever is taken then is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from scaleup.models.beside import base_of, unwrap
from scaleup.models.heads import ToldHead, swap_head, told

HEADS = ("score", "classifier", "classification_head", "pre_classifier", "pooler")
"""Transformers' names of what comes after the layers. It is new on a model that was no classifier."""
UNQUANTIZED = (*HEADS[:-1], "pooler.dense")
"""The same, as quantized loading is told what to leave alone."""

Pooling = Literal["whole", "last", "eos"]
"""What a score is read from: an encoder's own pooling, a decoder's last token, or an encoder-decoder's eos token."""


class PooledHead(ToldHead):
    """A decoder's head that, told each row's last position, has that one's logits at every position."""

    def answer(self, hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, S, H), last positions (B) -> logits (B, S, L)."""
        rows = torch.arange(hidden.shape[0], device=hidden.device)  # len would fix the size of an exported graph
        logits = self.logits(hidden[rows, last])
        return logits.unsqueeze(1).expand(-1, hidden.shape[1], -1)


def pool_by_mask(model: Any) -> None:
    """Let a decoder's head read its logits where `classify` says. Other models stay as they are."""
    if pooling_of(model) != "last":
        return
    for module in model.score.modules():  # PEFT keeps two of them, the base's and the one that is trained
        if type(module) is nn.Linear:
            swap_head(module, PooledHead)
    if model.config.get_text_config().pad_token_id is None:
        model.config.get_text_config().pad_token_id = 0  # else Transformers refuses batches; what is taken is the same


def is_sequence_classifier(model: Any) -> bool:
    """By its class: Transformers has one for each architecture and task."""
    return type(model).__name__.endswith("ForSequenceClassification")


def pooling_of(model: Any) -> Pooling:
    """Of a classifier, whose head PEFT may have wrapped."""
    if model.config.is_encoder_decoder:
        return "eos"
    head = getattr(model, "score", None)
    return "last" if isinstance(getattr(head, "original_module", head), nn.Linear) else "whole"


def classify(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits (B, L) in float32 of a classifier, wrapped or not, that `load_model` gave; `inputs` has input_ids and
    attention_mask (B, S). Rows may be padded with any id but an encoder-decoder's eos, on the right or, for decoders
    that get their positions, on the left."""
    whole = unwrap(model)
    heads = [module for module in whole.modules() if isinstance(module, PooledHead)]
    mask = inputs["attention_mask"]
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    options = {"use_cache": False} if heads or whole.config.is_encoder_decoder else {}
    with told(last, *heads):
        return model(**inputs, **options).logits.float()


def head_names(model: Any) -> list[str]:
    """The modules of a classifier that are its head."""
    return [name for name, _ in model.named_modules() if name.rpartition(".")[2] in HEADS and not _within(name)]


def is_of_head(parameter: str) -> bool:
    """Whether a parameter's name is one of the head's."""
    return not set(parameter.split(".")).isdisjoint(HEADS)


def _within(name: str) -> bool:
    return is_of_head(name.rpartition(".")[0])


def plain_padding(model: Any, tokenizer: Any) -> None:
    """Before a model is saved: what Transformers by itself may take for padding. None where that is the eos token,
    which ends every row: single rows then have the same score, and batches are refused, not read a token too early."""
    whole = base_of(model)
    if pooling_of(whole) == "last":
        pad = tokenizer.pad_token_id
        whole.config.get_text_config().pad_token_id = None if pad == tokenizer.eos_token_id else pad
