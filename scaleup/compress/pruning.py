"""This module turns scores into which layers, heads, features and weights are kept.

Its functions are pure: of equal scores the first is kept, and every rank chooses the same."""

from __future__ import annotations

import math

import torch


def top_indices(scores: torch.Tensor, num_kept: int) -> list[int]:
    """Returns the indices of the `num_kept` highest of the scores (N), ascending."""
    best = scores.float().argsort(descending=True, stable=True)[:num_kept]  # float32: sums over ranks may end otherwise
    return sorted(best.tolist())


def drop_span(distances: torch.Tensor, num_layers: int, num_kept: int) -> list[int]:
    """Returns the layers that are kept when the span of layers is dropped across which hidden states change least;
    `distances[l]` is that between x_l and x_(l+n), n being how many are dropped (Gromov et al. 2024)."""
    gone = num_layers - num_kept
    assert len(distances) == num_kept + 1, "a distance for every place where the run may begin"
    first = int(distances.float().argmin())
    return [layer for layer in range(num_layers) if not first <= layer < first + gone]


def evenly_spaced(num_layers: int, num_kept: int) -> list[int]:
    """Returns the layers that are kept: evenly spaced, the first and the last among them."""
    if num_kept == 1:
        return [0]
    return [round(place * (num_layers - 1) / (num_kept - 1)) for place in range(num_kept)]


def feature_scores(input_norms: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Returns scores (in) of the input features of a matrix (out, in): the norm of a feature's activations (in) times
    that of its weights, which bounds what it adds to the output."""
    return input_norms * weight.double().norm(dim=0).cpu()


def head_scores(features: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Returns scores (num_heads) of heads, or of groups of them, from scores (heads * width) of the features of the
    output projection's input."""
    return features.reshape(num_heads, -1).square().sum(1).sqrt()


def top_dims_per_head(features: torch.Tensor, num_heads: int, num_kept: int) -> torch.Tensor:
    """Returns the indices (num_heads, num_kept) of the highest scores within each head, of features (num_heads *
    width)."""
    return torch.tensor([top_indices(head, num_kept) for head in features.reshape(num_heads, -1)])


def weight_scores(weight: torch.Tensor, input_norms: torch.Tensor | None) -> torch.Tensor:
    """Returns scores (out, in) of weights: |W|, times the norms of its inputs (in) if they are given (Wanda; Sun et al.
    2023)."""
    scores = weight.detach().abs().double()
    return scores if input_norms is None else scores * input_norms.to(scores)


def keep_mask(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Returns the mask (rows, width) of the weights that are kept: in each row all but the floor(sparsity * width)
    lowest scores."""
    mask = torch.ones_like(scores, dtype=torch.bool)
    lowest = scores.float().argsort(dim=1, stable=True)[:, : math.floor(sparsity * scores.shape[1])]
    return mask.scatter_(1, lowest, False)


def keep_two_of_four(scores: torch.Tensor) -> torch.Tensor:
    """Returns the mask (rows, width) of the weights that are kept: the two highest scores of every four neighbours in a
    row, whose width is a multiple of four."""
    rows, width = scores.shape
    return keep_mask(scores.reshape(rows * width // 4, 4), 0.5).reshape(rows, width)
