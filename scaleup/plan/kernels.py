"""A config and the machine go in; refusals come out of kernels that a run asks for and cannot have: another attention
than Transformers' choice. What the model's class lacks is told where its shell is built (describe/shell.py)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping

from scaleup.config.run import RunConfig
from scaleup.config.schema import ModelConfig, ParallelConfig
from scaleup.errors import Problem
from scaleup.plan.groups import device_of
from scaleup.plan.machine import Machine

FLASH = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
"""Maps an attention that is a package's own -> its module, and the package that brings it."""
ON_GPUS = (*FLASH, "flex_attention")


def attention_problems(config: RunConfig, machine: Machine, models: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    """Yields the attention of each of a run's `models`, by config key, that its device, its precision or what is
    installed does not have."""
    groups = {f"{reward.key}.model": reward.source for reward in config.reward_groups}
    for where, model in models.items():
        wanted, key = model.attn_implementation, f"{where}.attn_implementation"
        if wanted not in ON_GPUS:
            continue
        own: ParallelConfig = groups[where].parallel if where in groups else config.parallel
        precision = groups[where].mixed_precision if where in groups else config.mixed_precision
        if device_of(own, machine) == "cpu":
            yield Problem(key, f"{wanted} needs a GPU, and this run is on the CPU", "use sdpa or eager")
        elif wanted in FLASH and not machine.is_described:
            module, package = FLASH[wanted]
            if importlib.util.find_spec(module) is None:
                remedy = f"pip install {package}, or use sdpa, which has kernels of its own"
                yield Problem(key, f"{wanted} needs {module}, not installed here", remedy)
        if wanted in FLASH and precision == "no":
            what = f"{wanted} has no kernel for float32, and mixed_precision is no"
            yield Problem(key, what, "use mixed_precision: bf16, or sdpa")
