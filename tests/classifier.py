"""Sequence classifiers whose scores tell texts apart."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from scaleup.models.builtin import build
from scaleup.models.sources import materialize

LABELS = {0: "negative", 1: "positive"}
SCALE = 5.0
"""With it scores spread by 5e-2, and rounding moves them by 3e-7; without, by 7e-5 and 1e-8."""


def sharp_classifier(folder: Path) -> Path:
    """The built-in tiny BERT classifier (labels negative and positive) with larger matrices."""
    build("tiny-bert-classifier", folder)
    return _sharp(folder)


def sharp_classifier_like(name: str, folder: Path) -> Path:
    """As `sharp_classifier`, of another built-in model's kind: `tiny-gpt2` with a head of the two labels, say."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    source = materialize(f"builtin:{name}")
    config = AutoConfig.from_pretrained(source, id2label=LABELS, label2id={name: n for n, name in LABELS.items()})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return _sharp(folder)


def _sharp(folder: Path) -> Path:
    file = folder / "model.safetensors"
    weights = {name: part * SCALE if part.dim() == 2 else part for name, part in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    return folder
