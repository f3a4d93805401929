"""SparseGPT (Frantar and Alistarh 2023) through nvidia-modelopt, an optional package. As of 0.47 it chooses which
weights become zeros by second-order errors, and leaves the others as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from scaleup.data.collate import Batch


def sparsify(model: Any, rows: Sequence[Batch]) -> None:
    """Two zeros in every four weights of each linear module beside the head, in place. `rows` are batches of one row:
    modelopt knows no padding. The plan has seen to it that the package is there."""
    from modelopt.torch import sparsity  # type: ignore[import-not-found]

    device = next(model.parameters()).device

    @torch.no_grad()
    def forward_loop(whole: Any) -> None:
        for row in rows:
            whole(**row.to(device).inputs, use_cache=False)

    model.eval()
    sparsity.sparsify(model, mode="sparsegpt", config={"forward_loop": forward_loop, "verbose": False})
    sparsity.export(model)  # masks become zeros of ordinary modules
