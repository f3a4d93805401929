"""On GPUs, over NCCL: every strategy on one GPU is the run on the CPU, in low precision too, and on two GPUs where
there are two. Skipped where there is none; `make gpu` runs it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from scaleup.plan.machine import this_machine
from scaleup.plan.types import Plan
from tests.cli import differing, losses, metrics, run
from tests.gpu.tiny import CONFIG

NUM_GPUS = this_machine().num_gpus
pytestmark = [pytest.mark.skipif(NUM_GPUS == 0, reason="needs an NVIDIA GPU"), pytest.mark.slow]
Losses = dict[int, float]
STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")
SHARED = STRATEGIES[1:]
BOUNDS = {"no": 1e-3, "bf16": 5e-2, "fp16": 5e-2}
"""Bound how far a loss may be from the CPU's in float32: a GPU multiplies float32 in another order."""


def on_gpu(place: Path, **changes: Any) -> Path:
    name = "-".join(str(value) for value in changes.values()).replace(".", "_")
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return run(differing(CONFIG, {"name": f"gpu-{name}", "parallel.device": "cuda", **dotted}), cwd=place)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_strategy_on_one_gpu_follows_the_cpu(place: Path, on_cpu: Losses, strategy: str) -> None:
    here = on_gpu(place, parallel__strategy=strategy)
    group = Plan.read(here / "plan.json").group("policy")
    assert (group.device, group.backend) == ("cuda", "nccl" if strategy != "single" else group.backend)
    assert max(abs(losses(here)[step] - on_cpu[step]) for step in on_cpu) <= BOUNDS["no"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_learns_as_much(place: Path, on_cpu: Losses, precision: str, strategy: str) -> None:
    """A step that fp16's loss scale skips changes no weight: what comes after the first of them is a step behind."""
    here = on_gpu(place, parallel__strategy=strategy, mixed_precision=precision)
    found, norms = losses(here), {line["step"]: line["grad_norm"] for line in metrics(here) if "grad_norm" in line}
    skipped = [step for step, norm in norms.items() if norm is None or not math.isfinite(norm)]
    alike = [step for step in on_cpu if step <= min(skipped, default=max(on_cpu))]
    assert precision == "fp16" or skipped == []
    assert max(abs(found[step] - on_cpu[step]) for step in alike) <= BOUNDS[precision]
    assert len(skipped) < len(norms), "every step was skipped"


@pytest.mark.skipif(NUM_GPUS < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("strategy", SHARED)
def test_two_gpus_are_the_run_on_one(place: Path, strategy: str) -> None:
    one = losses(on_gpu(place, parallel__strategy="single"))
    changes = {"parallel__num_processes": 2, "train__per_device_train_batch_size": 2}
    two = losses(on_gpu(place, parallel__strategy=strategy, **changes))
    assert max(abs(one[step] - two[step]) for step in one) <= BOUNDS["no"]


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", "flash_attention_2"])
def test_attention_on_a_gpu(place: Path, on_cpu: Losses, attention: str) -> None:
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    here = losses(on_gpu(place, model__attn_implementation=attention, mixed_precision="bf16"))
    assert max(abs(here[step] - on_cpu[step]) for step in on_cpu) <= BOUNDS["bf16"]


@pytest.mark.parametrize("key", ["torch_compile", "use_liger_kernel"])
def test_kernels_on_a_gpu(place: Path, on_cpu: Losses, key: str) -> None:
    pytest.importorskip("triton" if key == "torch_compile" else "liger_kernel")
    here = losses(on_gpu(place, **{key: True, "parallel__strategy": "single"}))
    assert max(abs(here[step] - on_cpu[step]) for step in on_cpu) <= 1e-2
