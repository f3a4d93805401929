"""What a config says of its adapter that cannot be, by itself and beside the rest of the run."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.adapters import PromptTuningAdapter, SelectiveAdapter
from scaleup.config.schema import RunConfig
from scaleup.config.stages import SFTConfig
from scaleup.errors import Problem
from scaleup.plan.compat import adapter_of, compat_problems
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import adapter_folder, adapter_path_problems

PROMPTS = frozenset({"prompt_tuning"})
"""Adapters that put virtual tokens in front of a row."""


def adapter_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    yield from compat_problems(config)
    if not isinstance(config, SFTConfig):
        return
    yield from _beside_the_run(config)
    adapter = config.adapter
    if adapter is None:
        return
    if adapter_folder(config.model.path) is not None:
        what = f"and the model at {config.model.path} is an adapter already"
        yield Problem("adapter", what, "leave adapter out to train that one further, or name the base model")
    if isinstance(adapter, PromptTuningAdapter) and adapter.path is None:
        yield from _prompt_problems(adapter)
    if isinstance(adapter, SelectiveAdapter) or adapter.path is None:
        return
    yield from adapter_path_problems(adapter.path, "adapter.path")
    given = adapter.model_dump(exclude_defaults=True).keys() - {"type", "path"}
    for key in sorted(given):
        yield Problem(f"adapter.{key}", "is settled by the adapter at adapter.path", "leave it out")


def _beside_the_run(config: SFTConfig) -> Iterator[Problem]:
    """What the adapter excludes, whether the config describes it or the model's path names it."""
    kind = adapter_of(config)
    if kind in PROMPTS and config.data.packing:
        what = f"gives the rows of a sequence one {kind} between them: only the first would see it"
        yield Problem("data.packing", what, "leave it out, or use train.tokens_per_device")


def _prompt_problems(adapter: PromptTuningAdapter) -> Iterator[Problem]:
    if adapter.num_virtual_tokens is None:
        yield Problem("adapter.num_virtual_tokens", "is missing", "say how many, e.g. 20")
    is_text, text = adapter.prompt_tuning_init == "TEXT", adapter.prompt_tuning_init_text
    if is_text and text is None:
        yield Problem("adapter.prompt_tuning_init_text", "is needed for prompt_tuning_init TEXT", "give the text")
    if not is_text and text is not None:
        what = f"{adapter.prompt_tuning_init} starts from no text, and prompt_tuning_init_text gives one"
        yield Problem("adapter.prompt_tuning_init", what, "use TEXT, or leave the text out")
