"""A config goes in; problems of its adapter come out, by itself and beside the rest of the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scaleup.config.adapters import AdaLoraAdapter, LoraAdapter, PrefixAdapter, PromptTuningAdapter, SelectiveAdapter
from scaleup.config.stages.base import TrainingConfig
from scaleup.errors import Problem
from scaleup.plan.compat import adapter_of, compat_problems
from scaleup.plan.model_path import adapter_folder, adapter_path_problems, saved_settings

VIRTUAL = frozenset({"prompt_tuning", "prefix"})
"""Names the adapters that put virtual tokens in front of a row."""


def adapter_problems(config: TrainingConfig) -> Iterator[Problem]:
    yield from compat_problems(config)
    yield from _beside_the_run(config)
    yield from _new_token_problems(config)
    yield from _going_on(config)
    adapter = config.adapter
    if isinstance(adapter, PromptTuningAdapter | PrefixAdapter) and adapter.path is None:
        yield from _virtual_problems(adapter)
    if isinstance(adapter, AdaLoraAdapter) and adapter.path is None and adapter.target_r >= adapter.init_r:
        what = f"{adapter.target_r} is not less than adapter.init_r {adapter.init_r}: no ranks would be taken away"
        yield Problem("adapter.target_r", what, "use less, or lora")


def _beside_the_run(config: TrainingConfig) -> Iterator[Problem]:
    """Yields settings that the adapter excludes, whether the config describes it or a path names it."""
    kind = adapter_of(config)
    if kind in VIRTUAL and config.data.packing:
        what = f"gives the rows of a sequence one {kind} between them: only the first would see it in its place"
        yield Problem("data.packing", what, "leave it out, or use train.tokens_per_device")
    if kind == "prefix" and config.gradient_checkpointing:
        what = "a prefix is a cache of keys and values, which layers that are recomputed do without"
        yield Problem("gradient_checkpointing", what, "set it to false, or use prompt_tuning")
    for key in ("early_stopping_patience", "load_best_model_at_end"):
        if isinstance(config.adapter, AdaLoraAdapter) and getattr(config.train, key, None):
            what = "ends with an earlier model, and adalora's has the wanted ranks only at the end of its schedule"
            yield Problem(f"train.{key}", what, "leave it out, or use lora")


def _new_token_problems(config: TrainingConfig) -> Iterator[Problem]:
    """Yields an adapter that would not learn the rows of new tokens."""
    adapter = config.adapter
    if not config.model.new_tokens or adapter is None:
        return
    if not isinstance(adapter, LoraAdapter | SelectiveAdapter):
        what = f"{adapter.type} is not supported with model.new_tokens: it would not learn their rows"
        yield Problem("adapter.type", what, "use lora, or train the whole model")
    elif isinstance(adapter, LoraAdapter) and adapter.path is not None:
        what = "is not supported with model.new_tokens: what an adapter trains is settled"
        yield Problem("adapter.path", what, "begin a new adapter, or merge that one first: scaleup export")


def _going_on(config: TrainingConfig) -> Iterator[Problem]:
    """Yields problems of training an existing adapter further: one at the model's path, or one that the config puts on
    the base model."""
    adapter, folder = config.adapter, adapter_folder(config.model.path)
    if folder is not None:
        yield from _further_problems(folder, "model.path")
    if adapter is not None and folder is not None:
        what = f"and the model at {config.model.path} is an adapter already"
        yield Problem("adapter", what, "leave adapter out to train that one further, or name the base model")
    if adapter is None or isinstance(adapter, SelectiveAdapter) or adapter.path is None:
        return
    yield from adapter_path_problems(adapter.path, "adapter.path")
    given = adapter.model_dump(exclude_defaults=True).keys() - {"type", "path"}
    for key in sorted(given):
        yield Problem(f"adapter.{key}", "is settled by the adapter at adapter.path", "leave it out")
    if (folder := adapter_folder(adapter.path)) is not None:
        yield from _further_problems(folder, "adapter.path")


def _further_problems(folder: Path, where: str) -> Iterator[Problem]:
    if saved_settings(folder).get("prefix_projection"):
        what = f"the network that made the prefix of {folder} was not saved, so it cannot be trained further"
        yield Problem(where, what, "begin anew, or train a prefix without prefix_projection")


def _virtual_problems(adapter: PromptTuningAdapter | PrefixAdapter) -> Iterator[Problem]:
    if adapter.num_virtual_tokens is None:
        yield Problem("adapter.num_virtual_tokens", "is missing", "say how many, e.g. 20")
    if isinstance(adapter, PrefixAdapter):
        if adapter.encoder_hidden_size is not None and not adapter.prefix_projection:
            what = "is the width of a network that prefix_projection asks for"
            yield Problem("adapter.encoder_hidden_size", what, "set prefix_projection: true, or leave it out")
        return
    is_text, text = adapter.prompt_tuning_init == "TEXT", adapter.prompt_tuning_init_text
    if is_text and text is None:
        yield Problem("adapter.prompt_tuning_init_text", "is needed for prompt_tuning_init TEXT", "give the text")
    if not is_text and text is not None:
        what = f"{adapter.prompt_tuning_init} starts from no text, and prompt_tuning_init_text gives one"
        yield Problem("adapter.prompt_tuning_init", what, "use TEXT, or leave the text out")
