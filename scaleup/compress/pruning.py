"""Scores -> what is kept. Pure functions: of equal scores the first is kept, and every rank chooses the same."""

from __future__ import annotations

import math

import torch


def lowest_out(scores: torch.Tensor, num_kept: int) -> list[int]:
    """Numbers of the `num_kept` highest scores, in order."""
    best = scores.float().argsort(descending=True, stable=True)[:num_kept]  # float32: sums over ranks may end otherwise
    return sorted(best.tolist())


def span_out(distances: torch.Tensor, num_layers: int, num_kept: int) -> list[int]:
    """Layers that are kept when the run of layers goes across which hidden states change least; `distances[l]` is that
    between x_l and x_(l+n), n being how many go (Gromov et al. 2024)."""
    gone = num_layers - num_kept
    assert len(distances) == num_kept + 1, "a distance for every place where the run may begin"
    first = int(distances.float().argmin())
    return [layer for layer in range(num_layers) if not first <= layer < first + gone]


def evenly(num_layers: int, num_kept: int) -> list[int]:
    """Evenly spaced, the first and the last among them."""
    if num_kept == 1:
        return [0]
    return [round(place * (num_layers - 1) / (num_kept - 1)) for place in range(num_kept)]


def feature_scores(input_norms: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What each input feature of a matrix (out, in) adds at most: the norm of its activations times that of its
    weights."""
    return input_norms * weight.double().norm(dim=0).cpu()


def head_scores(features: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Scores of the features of the output projection's input -> of heads, or of groups of heads."""
    return features.reshape(num_heads, -1).square().sum(1).sqrt()


def dims_out(features: torch.Tensor, num_heads: int, num_kept: int) -> torch.Tensor:
    """(heads, num_kept) best features within each head."""
    return torch.tensor([lowest_out(head, num_kept) for head in features.reshape(num_heads, -1)])


def weight_scores(weight: torch.Tensor, input_norms: torch.Tensor | None) -> torch.Tensor:
    """|W| (out, in), times the norms of its inputs where there are some: Wanda (Sun et al. 2023)."""
    scores = weight.detach().abs().double()
    return scores if input_norms is None else scores * input_norms.to(scores)


def smallest_out(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Which weights stay: in each row all but the floor(sparsity * width) lowest scores."""
    mask = torch.ones_like(scores, dtype=torch.bool)
    lowest = scores.float().argsort(dim=1, stable=True)[:, : math.floor(sparsity * scores.shape[1])]
    return mask.scatter_(1, lowest, False)


def two_of_four(scores: torch.Tensor) -> torch.Tensor:
    """Which weights stay: the two highest of every four neighbours in a row, whose width is a multiple of four."""
    rows, width = scores.shape
    return smallest_out(scores.reshape(rows * width // 4, 4), 0.5).reshape(rows, width)
