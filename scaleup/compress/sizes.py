"""What a cut came to, as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from scaleup.config.prune import PruneSettings

from .card import DENSE
from .cut import share_of_zeros


def sizes_of(model: Any, when: str) -> dict[str, int]:
    """Parameters, each shared tensor counted once; of the second number embeddings and what is tied to them are left
    out."""
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    total = sum(parameter.numel() for parameter in model.parameters())
    inside = total - sum(table.numel() for table in tables)
    return {f"num_parameters_{when}": total, f"num_non_embedding_parameters_{when}": inside}


def cut_metrics(model: Any, settings: PruneSettings, kept: Mapping[str, list[int]]) -> dict[str, Any]:
    """Which layers are left, by stack; and the share of zeros, marked for what they are."""
    found: dict[str, Any] = {}
    if settings.layers is not None:
        found |= {f"{name}_layers": " ".join(map(str, layers)) for name, layers in kept.items()}
    if settings.sparsity is not None:
        found |= {"zeros": share_of_zeros(model), "note": DENSE}
    return found
