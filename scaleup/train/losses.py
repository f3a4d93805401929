"""A model and a batch go in; the loss summed over its labelled tokens comes out. The loop divides by the
*global* number of them, so the split of a batch does not matter."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from scaleup.data.collate import Batch, Places
from scaleup.models.beside import base_of, unwrap
from scaleup.models.heads import told
from scaleup.models.soft_prompts import num_prepended
from scaleup.train.head_loss import loss_head


def token_loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy summed over the labelled positions of a batch, a float32 scalar.

    A model whose head was fused returns it itself, and logits exist for a few labelled positions at a time. Else the
    head is applied to the columns in which some row has a label, where the architecture can: logits are (B, K, V) with
    K <= S. A batch without labels gives a zero that still has a gradient, which keeps every rank in the same
    collectives.

    In training, a model of experts adds its router's auxiliary loss, as Transformers does, for each of the labels: the
    step's mean is then cross-entropy + coefficient x auxiliary loss, of several micro-batches the mean of theirs by
    their labels. The loss of an evaluation is cross-entropy alone."""
    whole, inputs = unwrap(model), dict[str, Any](batch.inputs)
    labels, places = batch.places.select(batch.labels), batch.places.behind(num_prepended(whole))
    coefficient = router_loss_coefficient(whole) if whole.training else None
    if coefficient is not None:
        inputs["output_router_logits"] = True
    if head := loss_head(whole):
        with told((labels, places), head):
            output = model(**inputs, use_cache=False)
        loss = output.logits
    else:
        output, logits = _outputs_at(model, places, inputs)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    return loss if coefficient is None else loss + batch.num_labels * coefficient * output.aux_loss


def router_loss_coefficient(model: Any) -> float | None:
    """Return what a causal model of experts multiplies the loss by that balances its router's load (Fedus et al. 2021,
    equation 4); None where there is no such loss."""
    base = base_of(model)
    return None if base.config.is_encoder_decoder else getattr(base, "router_aux_loss_coef", None) or None


def labelled_logits(model: Any, places: Places, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return logits (N, V) of the labelled positions of (B, S), row by row."""
    return _outputs_at(model, places, inputs)[1]


def _outputs_at(model: Any, places: Places, inputs: Mapping[str, Any]) -> tuple[Any, torch.Tensor]:
    if _chooses_logits(type(base_of(unwrap(model)))):
        inputs, places = {**inputs, "logits_to_keep": places.columns}, places.within_columns()
    output = model(**inputs, use_cache=False)
    return output, places.select(output.logits)


def _chooses_logits(architecture: type[torch.nn.Module]) -> bool:
    """Return whether a model takes `logits_to_keep`, as Transformers' causal ones do: the columns of the hidden states
    to which the head is applied."""
    return "logits_to_keep" in inspect.signature(architecture.forward).parameters
