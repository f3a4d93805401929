"""What a cut came to, as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaleup.config.prune import PruneSettings

from .card import DENSE
from .cut import share_of_zeros


def sizes_of(model: Any, when: str) -> dict[str, int]:
    """Parameters, each shared tensor counted once; of the second number embeddings and what is tied to them are left
    out."""
    return {
        f"num_parameters_{when}": model.num_parameters(),
        f"num_non_embedding_parameters_{when}": model.num_parameters(exclude_embeddings=True),
    }


def cut_metrics(model: Any, settings: PruneSettings, kept: Mapping[str, list[int]]) -> dict[str, Any]:
    """Which layers are left, by stack; and the share of zeros, marked for what they are."""
    found: dict[str, Any] = {}
    if settings.layers is not None:
        found |= {f"{name}_layers": " ".join(map(str, layers)) for name, layers in kept.items()}
    if settings.sparsity is not None:
        found |= {"zeros": share_of_zeros(model), "note": DENSE}
    return found
