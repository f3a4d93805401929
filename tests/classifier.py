"""A sequence classifier whose scores tell texts apart."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

from scaleup.models.builtin import build

SCALE = 5.0
"""With it scores spread by 5e-2, and rounding moves them by 3e-7; without, by 7e-5 and 1e-8."""


def sharp_classifier(folder: Path) -> Path:
    """The built-in tiny BERT classifier (labels negative and positive) with larger matrices."""
    build("tiny-bert-classifier", folder)
    file = folder / "model.safetensors"
    weights = {name: part * SCALE if part.dim() == 2 else part for name, part in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    return folder
