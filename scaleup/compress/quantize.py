"""This module takes a model, quantizes its weights to fewer bits and writes a folder that plain Transformers loads.

Transformers writes torchao's 8-bit tensors as what they consist of, plain tensors in safetensors with the rest in the
file's header; nothing is pickled (docs/design/quantization.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from scaleup.compress.export import DTYPES, cast
from scaleup.compress.probes import Probe, difference, logits_on
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.quantize import QuantizeConfig, QuantizeSettings
from scaleup.describe.shell import shell_of
from scaleup.errors import ScaleupError
from scaleup.models.generation import save_tokenizer
from scaleup.models.load import load_model
from scaleup.plan.facts import ModelFacts

INT4_GROUP = 128


@dataclass(frozen=True)
class Choice:
    """Holds the names of a model's matrices: those that are quantized, and those that are left as they are."""

    quantized: list[str]
    left: list[str]


def chosen_matrices(model: ModelConfig, settings: QuantizeSettings) -> Choice:
    """Returns which matrices are quantized, as read from the model without storage.

    Raises ScaleupError for a pattern that matches nothing, and where nothing is left to quantize, or not in groups."""
    shell = shell_of(model).model
    matrices = {name: module for name, module in shell.named_modules() if type(module) is torch.nn.Linear}
    left = _unquantized(shell, matrices, settings)
    chosen = [name for name in matrices if name not in left]
    if not chosen:
        what = f"leaves nothing: {type(shell).__name__} has {len(matrices)} matrices of the kind that torchao quantizes"
        raise ScaleupError.of(
            "quantize.skip" if settings.skip else "quantize.method", what, "use bfloat16, or skip less"
        )
    size = group_size(settings)
    unequal = [name for name in chosen if size and matrices[name].in_features % size]
    if unequal:
        what = f"{size} does not divide the {matrices[unequal[0]].in_features} inputs of {unequal[0]}"
        raise ScaleupError.of("quantize.group_size", what, "use a divisor of it, or skip that module")
    return Choice(chosen, sorted(left))


def group_size(settings: QuantizeSettings) -> int | None:
    """Returns how many inputs of a row share a scale; None where a whole row does."""
    return settings.group_size or (INT4_GROUP if settings.method == "int4_weight_only" else None)


def _unquantized(shell: Any, matrices: dict[str, torch.nn.Linear], settings: QuantizeSettings) -> set[str]:
    """Returns the matrices that are not quantized: the head, or what the patterns say; and in any case a head that
    shares weights, and what Transformers keeps in float32 (T5's `wo`)."""
    head, embeddings = shell.get_output_embeddings(), shell.get_input_embeddings()
    heads = {name for name, module in matrices.items() if module is head}
    is_tied = head is not None and head.weight is embeddings.weight
    kept = {name for name in matrices if set(name.split(".")) & set(shell._keep_in_fp32_modules or ())}
    if settings.skip is None:
        return heads | kept
    names = [name for name, _ in shell.named_modules() if name]
    for pattern in settings.skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            what = f"{pattern!r} matches no module of {type(shell).__name__}"
            raise ScaleupError.of("quantize.skip", what, f"write a pattern of names like {next(iter(matrices), '')!r}")
    matched = {name for name in matrices if any(_is_within(name, pattern) for pattern in settings.skip)}
    return matched | kept | (heads if is_tied else set())


def _is_within(name: str, pattern: str) -> bool:
    """Returns whether a pattern matches a module or one that it is in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:count]), pattern) for count in range(1, len(parts) + 1))


def load_quantized(config: QuantizeConfig, facts: ModelFacts, choice: Choice | None, device: torch.device) -> Any:
    """Loads the model from the unquantized files: quantized by torchao, or rounded to 16 bits and held in float32."""
    if config.quantize.is_low_precision:
        model = load_model(config.model, facts)
        cast(model, DTYPES[config.quantize.method])
        cast(model, torch.float32)
        return model.to(device).eval()
    assert choice is not None
    options = {"quantization_config": _torchao(config.quantize, choice), "device_map": {"": str(device)}}
    model = load_model(config.model, facts, quantized=options)
    quantized = {name for name, module in model.named_modules() if _is_quantized(module)}
    assert quantized == set(choice.quantized), sorted(quantized ^ set(choice.quantized))
    return model.eval()


def _torchao(settings: QuantizeSettings, choice: Choice) -> Any:
    from torchao import quantization as ao
    from transformers import TorchAoConfig

    size = group_size(settings)
    if settings.method == "int8_dynamic":
        scheme: Any = ao.Int8DynamicActivationInt8WeightConfig()
    elif settings.method == "int4_weight_only":
        scheme = ao.Int4WeightOnlyConfig(group_size=size)
    else:
        scheme = ao.Int8WeightOnlyConfig(granularity=ao.PerGroup(size) if size else ao.PerRow())
    return TorchAoConfig(scheme, modules_to_not_convert=choice.left)


def _is_quantized(module: Any) -> bool:
    from torchao.utils import TorchAOBaseTensor

    return isinstance(getattr(module, "weight", None), TorchAOBaseTensor)


def write_quantized(model: Any, tokenizer: Any, settings: QuantizeSettings, folder: Path) -> None:
    """Writes weights, config and tokenizer to `folder`; 16-bit weights are rounded in place."""
    if settings.is_low_precision:
        cast(model, DTYPES[settings.method])
    model.save_pretrained(folder, max_shard_size=settings.max_shard_size)
    save_tokenizer(tokenizer, folder)


def read_quantized(
    config: QuantizeConfig,
    facts: ModelFacts,
    folder: Path,
    probes: Sequence[Probe],
    written: Sequence[torch.Tensor],
    device: torch.device,
) -> tuple[Any, float]:
    """Loads the written folder; returns its model, and how far its logits are from `written`, those of the model that
    was written. Only the order of sums may move them.

    Raises ScaleupError where it is another model."""
    model = load_model(config.model, facts.model_copy(update={"location": str(folder)})).to(device).eval()
    moved = difference(logits_on(model, probes, device), written)
    if not moved <= SAME:
        what = f"reading the written folder again moves logits by {moved:.1e} of the largest: nothing was written"
        raise ScaleupError.of("quantize.method", what, "report this: the architecture is not written as it is held")
    return model, moved


SAME = 1e-5
"""Bounds that difference, as a share of the largest logit."""
