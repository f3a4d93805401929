"""This module plans the group of an engine that draws a policy's responses: what it is started with, and its memory."""

from __future__ import annotations

from pathlib import Path

from scaleup.config.adapters import LoraAdapter
from scaleup.config.generator import GeneratorConfig
from scaleup.config.run import RunConfig
from scaleup.plan.facts import ModelFacts
from scaleup.plan.memory import FLOAT32
from scaleup.plan.model_path import adapter_folder, saved_settings
from scaleup.plan.types import GeneratorPlan, GroupPlan, LoadingPlan, MemoryPlan

DTYPES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Maps mixed_precision -> what vLLM computes in."""
RANKS = (8, 16, 32, 64, 128, 256, 512)
"""Lists the ranks of adapters that vLLM makes room for."""
COPIES = 2
"""Counts the versions of the weights that lie in main memory while a new one is written."""
GIB = 2**30


def generator_plan(config: RunConfig, generator: GeneratorConfig) -> GeneratorPlan:
    """Returns what an engine is started with."""
    assert generator.python is not None
    rank = adapter_rank(config)
    return GeneratorPlan(
        python=generator.python,
        dtype=DTYPES[config.mixed_precision],
        max_model_len=config.data.max_length + config.longest_response,
        max_num_seqs=generator.max_num_seqs,
        kv_cache_gib=generator.kv_cache_gib,
        gpu_memory_utilization=generator.gpu_memory_utilization,
        max_lora_rank=None if rank is None else next((most for most in RANKS if most >= rank), rank),
    )


def adapter_rank(config: RunConfig) -> int | None:
    """Returns the rank of the LoRA adapter that a policy trains; None where it trains all of the model."""
    adapter = getattr(config, "adapter", None)
    path = config.model.path if adapter is None else getattr(adapter, "path", None)
    if path is None:
        return adapter.r if isinstance(adapter, LoraAdapter) else None
    folder: Path | None = adapter_folder(path)
    return None if folder is None else int(saved_settings(folder).get("r", RANKS[0]))


def generator_memory(group: GroupPlan, facts: ModelFacts) -> MemoryPlan:
    """Returns the bytes of a process of an engine: its part of the weights, and, on a CPU, its keys and values. On a
    GPU it takes the share that the config gives it."""
    assert group.generator is not None
    width = FLOAT32 if group.generator.dtype == "float32" else 2
    weights = width * facts.num_parameters // group.num_processes
    kept = group.generator.kv_cache_gib * GIB if group.device == "cpu" else 0
    return MemoryPlan(strategy=group.strategy, weights=weights, gradients=0, optimizer=0, buffers=kept)


def generator_loading(group: GroupPlan, held: MemoryPlan, facts: ModelFacts) -> LoadingPlan:
    """Returns what an engine takes of main memory, with the weights that the policy writes there for it."""
    written = COPIES * FLOAT32 * facts.num_parameters
    kept = held.total if group.device == "cpu" else 0
    return LoadingPlan(group=group.name, kept=kept, rank=kept, node=kept * group.num_processes + written)
