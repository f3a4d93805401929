"""A config goes in; DeepSpeed's settings for a ZeRO stage come out, every one resolved: no "auto" is left for a library
to fill in differently."""

from __future__ import annotations

from typing import Any

from scaleup.config.schema import ParallelConfig
from scaleup.config.stages.base import TrainingConfig

BUCKET = 50_000_000
"""Counts the elements that travel at once, in every collective."""
LIVE = 500_000_000
"""ZeRO-3 gathers ahead of use up to so many elements: a bucket more with each module, so smaller models are whole."""
PERSISTENT = 100_000
"""ZeRO-3 keeps tensors of up to so many elements whole on each rank."""


def deepspeed_settings(config: TrainingConfig, stage: int) -> dict[str, Any]:
    """Returns DeepSpeed's settings. `stage` 1 shards the optimizer state, 2 also gradients, 3 also parameters.

    Accumulation is 1 here because the loop itself says which micro-batch is the last of a step."""
    parallel = config.parallel
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
        "offload_optimizer": {"device": "cpu" if parallel.offload_optimizer else "none"},
    }
    if stage == 3:
        zero |= _sharded_parameters(parallel.offload_parameters)
    return {
        **_common(config.mixed_precision),
        "gradient_clipping": config.train.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": parallel.offload_optimizer,
    }


def inference_settings(parallel: ParallelConfig, mixed_precision: str) -> dict[str, Any]:
    """Returns the ZeRO-3 settings of a model that is not trained: only its parameters are sharded."""
    zero = {"stage": 3, "offload_optimizer": {"device": "none"}, **_sharded_parameters(parallel.offload_parameters)}
    return {**_common(mixed_precision), "gradient_clipping": 0.0, "zero_optimization": zero}


def _sharded_parameters(offloads: bool) -> dict[str, Any]:
    return {
        "offload_param": {"device": "cpu" if offloads else "none"},
        "stage3_prefetch_bucket_size": BUCKET,
        "stage3_param_persistence_threshold": PERSISTENT,
        "stage3_max_live_parameters": LIVE,
        "stage3_max_reuse_distance": BUCKET,  # 1e9, the default, leaves all but large models gathered
        "stage3_gather_16bit_weights_on_model_save": False,
    }


def _common(mixed_precision: str) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # batches are ours: no loader of DeepSpeed's reads this
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": mixed_precision == "bf16"},
        "fp16": {"enabled": mixed_precision == "fp16"},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }
