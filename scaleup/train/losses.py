"""A model and a batch go in; the loss summed over its labelled tokens, or texts, comes out. The loop divides by the
*global* number of them, so the split of a batch does not matter."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from scaleup.data.collate import Batch, Places
from scaleup.data.tokenization import IGNORE
from scaleup.models.beside import base_of, unwrap
from scaleup.models.classifier import classify
from scaleup.models.heads import told
from scaleup.models.soft_prompts import num_prepended
from scaleup.train.head_loss import loss_head


def token_loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy summed over the labelled positions of a batch, a float32 scalar.

    A model whose head was fused returns it itself, and logits exist for a few labelled positions at a time. Else the
    head is applied to the columns in which some row has a label, where the architecture can: logits are (B, K, V) with
    K <= S. A batch without labels gives a zero that still has a gradient, which keeps every rank in the same
    collectives."""
    whole, inputs = unwrap(model), batch.inputs
    labels, places = batch.places.select(batch.labels), batch.places.behind(num_prepended(whole))
    if head := loss_head(whole):
        with told((labels, places), head):
            return model(**inputs, use_cache=False).logits
    logits = labelled_logits(model, places, inputs)
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def class_loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy summed over the texts of a classifier's batch, a float32 scalar: of a distillation the
    student's own part."""
    return F.cross_entropy(classify(model, batch.inputs), batch.labels, ignore_index=IGNORE, reduction="sum")


def labelled_logits(model: Any, places: Places, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return logits (N, V) of the labelled positions of (B, S), row by row."""
    if _chooses_logits(type(base_of(unwrap(model)))):
        inputs, places = {**inputs, "logits_to_keep": places.columns}, places.within_columns()
    return places.select(model(**inputs, use_cache=False).logits)


def _chooses_logits(architecture: type[torch.nn.Module]) -> bool:
    """Return whether a model takes `logits_to_keep`, as Transformers' causal ones do: the columns of the hidden states
    to which the head is applied."""
    return "logits_to_keep" in inspect.signature(architecture.forward).parameters
