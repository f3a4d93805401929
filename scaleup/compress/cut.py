"""This module prunes a model once: it measures activations, chooses layers, columns, heads and weights, cuts them, and
returns metrics of the pruned model.

Whole parts are cut first, by scores of the whole model; zeros are chosen by scores of what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from scaleup.compress.calibration import Distances, calibrate, matrices_of
from scaleup.compress.pruning import (
    drop_span,
    evenly_spaced,
    feature_scores,
    head_scores,
    keep_mask,
    keep_two_of_four,
    top_dims_per_head,
    top_indices,
    weight_scores,
)
from scaleup.config.stages.prune import PruneSettings
from scaleup.data.collate import Batch
from scaleup.distributed.runtime import Runtime
from scaleup.models.architecture import Architecture, architecture_of
from scaleup.models.surgery import HeadDims, keep_head_dim, keep_intermediate, keep_kv_groups, keep_layers
from scaleup.reports.model_cards import DENSE


def cut_parts(runtime: Runtime, model: Any, settings: PruneSettings, batches: Sequence[Batch]) -> dict[str, list[int]]:
    """Cuts layers, MLP columns and heads in place; returns the numbers of the layers that were kept, by stack. Every
    rank must call it and cuts the same."""
    architecture = architecture_of(model)
    depths = {stack.name: len(stack.blocks) for stack in architecture.stacks}
    spans = _spans(settings, depths)
    matrices = _matrices_to_measure(architecture, settings)
    names = {id(module): name for name, module in model.named_modules()}
    statistics = calibrate(runtime, model, batches, spans, [names[id(matrix)] for matrix in matrices])
    kept = {name: _layers(settings, depth, statistics.distances.get(name)) for name, depth in depths.items()}
    scores = {
        id(matrix): feature_scores(statistics.input_norms[names[id(matrix)]], _out_in_weight(matrix))
        for matrix in matrices
    }
    if settings.num_key_value_heads is not None or settings.head_dim is not None:
        _cut_heads(model, architecture, settings, scores)
    if settings.intermediate_size is not None:
        size = settings.intermediate_size
        keep_intermediate(
            model, [torch.tensor(top_indices(scores[id(layer.mlp.out)], size)) for layer in architecture.layers]
        )
    keep_layers(model, kept)
    return kept


def make_zeros(runtime: Runtime, model: Any, settings: PruneSettings, batches: Sequence[Batch]) -> None:
    """Sets the share `settings.sparsity` of each matrix of each layer to zero, in place: by magnitude or by Wanda's
    score (Sun et al. 2023). Every rank must call it and does the same."""
    assert settings.sparsity is not None
    matrices = matrices_of(model)
    is_wanda = settings.sparsity_score == "wanda"
    norms = calibrate(runtime, model, batches, {}, list(matrices)).input_norms if is_wanda else {}
    for name, matrix in matrices.items():
        scores = weight_scores(_out_in_weight(matrix), norms.get(name))
        if settings.pattern == "2:4":
            mask = keep_two_of_four(scores)
        elif is_wanda:
            mask = keep_mask(scores, settings.sparsity)
        else:  # of the whole matrix
            mask = keep_mask(scores.reshape(1, -1), settings.sparsity).reshape(scores.shape)
        with torch.no_grad():
            _out_in_weight(matrix).mul_(mask)


def sparsify(model: Any, rows: Sequence[Batch]) -> None:
    """Sets two of every four weights of each linear module but the head to zero, in place, as SparseGPT chooses them
    (Frantar and Alistarh 2023). As of 0.47 modelopt leaves the other weights as they are.

    `rows` are batches of one row: modelopt knows no padding. The plan has checked that the optional package is
    installed."""
    from modelopt.torch import sparsity  # type: ignore[import-not-found]

    device = next(model.parameters()).device

    @torch.no_grad()
    def forward_loop(whole: Any) -> None:
        for row in rows:
            whole(**row.to(device).inputs, use_cache=False)

    model.eval()
    sparsity.sparsify(model, mode="sparsegpt", config={"forward_loop": forward_loop, "verbose": False})
    sparsity.export(model)  # masks become zeros of ordinary modules


def share_of_zeros(model: Any) -> float:
    """Returns the share of the weights of the layers' matrices that are zero, from 0 to 1."""
    weights = [_out_in_weight(matrix) for matrix in matrices_of(model).values()]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def sizes_of(model: Any, when: str) -> dict[str, int]:
    """Returns metrics of a model's size: its parameters, each shared tensor counted once; and those that are neither
    embeddings nor tied to them."""
    return {
        f"num_parameters_{when}": model.num_parameters(),
        f"num_non_embedding_parameters_{when}": model.num_parameters(exclude_embeddings=True),
    }


def cut_metrics(model: Any, settings: PruneSettings, kept: Mapping[str, list[int]]) -> dict[str, Any]:
    """Returns metrics of a cut: the layers that are left, by stack, and the share of weights that are zero, with a note
    that they are stored densely."""
    metrics: dict[str, Any] = {}
    if settings.layers is not None:
        metrics |= {f"{name}_layers": " ".join(map(str, layers)) for name, layers in kept.items()}
    if settings.sparsity is not None:
        metrics |= {"zeros": share_of_zeros(model), "note": DENSE}
    return metrics


def _spans(settings: PruneSettings, depths: Mapping[str, int]) -> dict[str, int]:
    if not settings.measures_layers:
        return {}
    assert isinstance(settings.layers, int)
    is_span = settings.layer_score == "angular"
    return {name: depth - settings.layers if is_span else 1 for name, depth in depths.items()}


def _layers(settings: PruneSettings, depth: int, distances: Distances | None) -> list[int]:
    if settings.layers is None:
        return list(range(depth))
    if isinstance(settings.layers, list):
        return sorted(settings.layers)
    if distances is None:
        return evenly_spaced(depth, settings.layers)
    if settings.layer_score == "angular":
        return drop_span(distances.angular, depth, settings.layers)
    return top_indices(distances.influence, settings.layers)


def _matrices_to_measure(architecture: Architecture, settings: PruneSettings) -> list[torch.nn.Module]:
    """Returns the matrices whose inputs give the scores of columns and heads: those that lead out of each MLP and
    attention."""
    matrices = [layer.mlp.out for layer in architecture.layers] if settings.intermediate_size is not None else []
    if settings.num_key_value_heads is not None or settings.head_dim is not None:
        matrices += [attention.out for attention in architecture.attentions]
    return matrices


def _cut_heads(
    model: Any, architecture: Architecture, settings: PruneSettings, scores: Mapping[int, torch.Tensor]
) -> None:
    """Cuts groups of heads and features of heads. A group is scored by what it adds to the output; a feature of T5's
    queries and keys by the product of its weights' norms in both."""
    all_heads = torch.arange(architecture.num_key_value_heads)
    groups = [all_heads] * len(architecture.attentions)
    if (count := settings.num_key_value_heads) is not None:
        group_scores = [
            head_scores(scores[id(attention.out)], architecture.num_key_value_heads)
            for attention in architecture.attentions
        ]
        groups = [torch.tensor(top_indices(group, count)) for group in _shared_scores(architecture, group_scores)]
    dims = []
    if (width := settings.head_dim) is not None:
        for attention, kept in zip(architecture.attentions, groups, strict=True):
            norms = [_out_in_weight(part).double().norm(dim=1).cpu() for part in (attention.query, attention.key)]
            query_key = top_dims_per_head(norms[0] * norms[1], architecture.num_heads, width)
            value = top_dims_per_head(scores[id(attention.out)], architecture.num_heads, width)
            dims.append(HeadDims(query_key[kept], value[kept]))
    if count is not None:
        keep_kv_groups(model, groups)
    if dims:
        keep_head_dim(model, dims)


def _shared_scores(architecture: Architecture, scores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the scores of groups, with one score for all self-attentions of a stack that share T5's relative bias:
    they must keep the same heads."""
    shared = list(scores)
    for stack in architecture.stacks:
        if not any(attention.relative_bias is not None for layer in stack.layers for attention in layer.attentions):
            continue
        own = {id(part.module) for layer in stack.layers for part in layer.attentions if not part.is_cross}
        places = [place for place, part in enumerate(architecture.attentions) if id(part.module) in own]
        total = torch.stack([scores[place].square() for place in places]).sum(0).sqrt()
        for place in places:
            shared[place] = total
    return shared


def _out_in_weight(matrix: Any) -> torch.Tensor:
    """Returns the weight as (out, in): a view where a Conv1D stores (in, out)."""
    return matrix.weight.detach().T if isinstance(matrix, Conv1D) else matrix.weight.detach()
