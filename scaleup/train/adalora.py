"""An AdaLoRA model and its optimizer go in; between steps, the ranks of its adapter come out smaller (Zhang et al.
2023): triplets of singular vectors and values are kept orthogonal by a term of the loss, and the least important of
them are masked until the budget of ranks is met.

PEFT does the masking. It wants the gradients of the step just taken, and keeps its running averages outside of the
model, so they go into checkpoints here."""

from __future__ import annotations

from typing import Any

import torch

AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
"""Names attributes of PEFT's allocator: how important each weight is, and how uncertain that is."""


class RankAllocation:
    """Allocates the ranks of an AdaLoRA model in training. It is replicated on every process: gradients are the same on
    all, and so are ranks."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, num_steps: int | None) -> None:
        """Ranks are allocated after each of `num_steps` of `optimizer`, before gradients are cleared; with None (an
        adapter that is trained further) they stay as they are."""
        self._tuner = model.base_model
        self._settings = model.active_peft_config
        self._allocator = model.base_model.rankallocator
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._rows = [p for name, p in named if ".lora_A." in name]
        self._columns = [p for name, p in named if ".lora_B." in name]
        self._step = 0
        if num_steps is not None:
            self._settings.total_step = num_steps
            optimizer.register_step_post_hook(self._allocate)

    def penalty(self) -> torch.Tensor:
        """Return how far the singular vectors are from orthogonal, a scalar, as PEFT adds it to a batch's loss."""
        grams = [p @ p.T for p in self._rows] + [p.T @ p for p in self._columns]
        norms = [torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]
        return self._settings.orth_reg_weight * torch.stack(norms).mean()

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the next allocation depends on beside the model."""
        state = {"step": torch.tensor(self._step)}
        for average in AVERAGES:
            state |= {f"{average}/{name}": value for name, value in getattr(self._allocator, average).items()}
        kept = self._settings.rank_pattern or {}
        return state | {f"rank_pattern/{name}": torch.tensor(ranks) for name, ranks in kept.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state` returned, for a model of the same shape."""
        device = self._rows[0].device
        parts: dict[str, dict[str, torch.Tensor]] = {"rank_pattern": {}, **{average: {} for average in AVERAGES}}
        for key, value in state.items():
            part, _, name = key.partition("/")
            if name:
                parts[part][name] = value.to(device)
        self._step = int(state["step"])
        self._settings.rank_pattern = {name: ranks.tolist() for name, ranks in parts["rank_pattern"].items()} or None
        for average in AVERAGES:
            setattr(self._allocator, average, parts[average])
        self._allocator.ipt = dict(parts["exp_avg_ipt"])  # by it PEFT knows that there are averages, and writes it anew

    def _allocate(self, optimizer: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
        self._step += 1
        self._tuner.update_and_allocate(self._step)
