"""Memory that a rank holds while it trains, by exact arithmetic on the shapes of a model's parameters. In bytes.

What is counted is held at the fullest moment of a step, which is the end of its backward pass: weights, gradients, what
the optimizer keeps, and the buffers that an engine keeps to communicate. Activations come on top, and what lives for a
moment only: the copy of a gradient that is on its way into a bucket, the temporaries of the optimizer's step.

The partitioning is that of ZeRO (Rajbhandari et al. 2020, section 3). The rest are facts of the pinned versions of
torch, Accelerate and DeepSpeed, measured by benchmarks/memory/held.py and told in docs/design/memory.md. AdamW keeps
two float32 moments a parameter (Loshchilov & Hutter 2019), SGD one with momentum and none without."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

from scaleup.config.schema import TrainConfig
from scaleup.config.stages import SupervisedConfig
from scaleup.plan.deepspeed import BUCKET, LIVE, PERSISTENT
from scaleup.plan.facts import ModelFacts, Tensors
from scaleup.plan.types import MemoryPlan

FLOAT32 = 4


def training_memory(facts: ModelFacts, config: SupervisedConfig, strategy: str, processes: int) -> MemoryPlan:
    """What each of `processes` ranks holds; the fullest rank, where padding makes them differ."""
    formula = _FORMULAS[strategy]
    return formula(facts, config, strategy, processes)


def inference_memory(facts: ModelFacts, strategy: str, quantization: str | None = None) -> MemoryPlan:
    """Every rank holds the whole model: in float32 whatever the precision of its arithmetic, quantized parts aside."""
    weights = _bytes(facts.tensors, FLOAT32, quantization)
    return MemoryPlan(strategy=strategy, weights=weights, gradients=0, optimizer=0)


def quantized_bytes(shape: tuple[int, ...], quantization: str | None) -> int:
    """Of one matrix as bitsandbytes keeps it. LLM.int8: a byte a number and a float32 a row. nf4: half a byte a number,
    a byte for each block of 64, a float32 for each 256 of these, two tables (of 16 and 256 float32) and an offset."""
    elements = prod(shape)
    if quantization == "8bit":
        return elements + FLOAT32 * shape[0]
    blocks = -(-elements // 64)
    return -(-elements // 2) + blocks + FLOAT32 * (-(-blocks // 256) + 16 + 256 + 1)


def _bytes(found: Iterable[Tensors], width: int, quantization: str | None) -> int:
    """What tensors take whole, with `width` bytes a number that is not quantized."""
    return sum(t.count * (quantized_bytes(t.shape, quantization) if t.quantized else width * t.elements) for t in found)


def _replicated(facts: ModelFacts, config: SupervisedConfig, strategy: str, processes: int) -> MemoryPlan:
    """`single` and `ddp`: everything, on each rank. Weights and gradients stay float32 under autocast; DDP's buckets
    are the gradients themselves (`gradient_as_bucket_view`)."""
    trainable = facts.num_trainable_parameters
    return MemoryPlan(
        strategy=strategy,
        weights=_bytes(facts.tensors, FLOAT32, config.quantization),
        gradients=FLOAT32 * trainable,
        optimizer=FLOAT32 * moments(config.train) * trainable,
    )


def _zero1_or_2(facts: ModelFacts, config: SupervisedConfig, strategy: str, processes: int) -> MemoryPlan:
    """DeepSpeed casts the model to the run's precision, lays each of the optimizer's groups out flat, padded to twice
    the number of ranks, and keeps a float32 copy of a rank's partition beside it, also of a float32 model.

    ZeRO-1 holds every gradient until the end of the backward pass, ZeRO-2 its partition's. Offloaded, the partition's
    gradients lie in main memory in float32, with the partition's new weights on their way back."""
    width = width_of(config)
    padded = sum(_padded(size, 2 * processes) for size in _flat_groups(facts))
    partition = padded // processes
    frozen = _bytes((t for t in facts.tensors if not t.trainable), width, config.quantization)
    largest = max(tensors.elements for tensors in facts.tensors if tensors.trainable)
    is_first, offloads = strategy == "zero1", config.parallel.offload_optimizer
    state = FLOAT32 * (1 + moments(config.train)) * partition
    staging = width * largest if offloads else 0
    return MemoryPlan(
        strategy=strategy,
        weights=width * padded + frozen,
        gradients=width * (facts.num_trainable_parameters if is_first else 0 if offloads else partition),
        optimizer=0 if offloads else state,
        buffers=width * BUCKET + staging,
        host=state + (FLOAT32 + width) * partition + staging if offloads else 0,
    )


def _zero3(facts: ModelFacts, config: SupervisedConfig, strategy: str, processes: int) -> MemoryPlan:
    """DeepSpeed shards each tensor by itself, padded to the number of ranks, and keeps a float32 copy of a rank's
    shards. Small tensors are whole on each rank as well. Others are gathered ahead of their use, as many as the
    settings allow. Of a 4-bit base a product keeps the gathered matrix until its backward pass."""
    width = width_of(config)
    plain = [tensors for tensors in facts.tensors if not tensors.quantized]
    trainable = sum(_padded(t.elements, processes) // processes * t.count for t in plain if t.trainable)
    shards = width * sum(_padded(t.elements, processes) // processes * t.count for t in plain)
    low = _bytes((t for t in facts.tensors if t.quantized), width, config.quantization)
    persistent = gathered = 0
    if processes > 1:  # else a shard is the whole tensor, and there is nothing to gather
        small = sum(t.elements * t.count for t in plain if t.elements <= PERSISTENT)
        persistent = width * small
        gathered = width * min(sum(t.elements * t.count for t in plain) - small, LIVE)
        gathered += min(low, LIVE) if config.gradient_checkpointing else low
    offloads, away = config.parallel.offload_optimizer, config.parallel.offload_parameters
    state = FLOAT32 * (1 + moments(config.train)) * trainable
    shards += low // processes
    host = (shards if away else 0) + (state + (FLOAT32 + width) * trainable if offloads else 0)
    return MemoryPlan(
        strategy=strategy,
        weights=persistent + (0 if away else shards),
        gradients=0 if offloads else width * trainable,
        optimizer=0 if offloads else state,
        buffers=width * BUCKET + gathered,
        host=host,
    )


def _fsdp2(facts: ModelFacts, config: SupervisedConfig, strategy: str, processes: int) -> MemoryPlan:
    """torch cuts each tensor along its first dimension; the first rank's piece is the largest. Shards, their gradients
    and the optimizer's state are float32 in any precision. To communicate it takes up to four times its largest block
    in float32, and half of that number in less."""
    width = width_of(config)
    shards = _cut_by_rows(facts.tensors, processes)
    trainable = _cut_by_rows((t for t in facts.tensors if t.trainable), processes)
    return MemoryPlan(
        strategy=strategy,
        weights=FLOAT32 * shards,
        gradients=FLOAT32 * trainable,
        optimizer=FLOAT32 * moments(config.train) * trainable,
        buffers=(4 if width == FLOAT32 else 2) * width * facts.largest_block,
    )


def moments(train: TrainConfig) -> int:
    return {"adamw": 2, "sgd": 1 if train.momentum else 0}[train.optimizer]


def width_of(config: SupervisedConfig) -> int:
    """Bytes of a number in the run's precision."""
    return FLOAT32 if config.mixed_precision == "no" else 2


def _flat_groups(facts: ModelFacts) -> list[int]:
    """Elements of the optimizer's groups: matrices, which decay, and vectors, which do not (train/optim.py)."""
    sizes = [0, 0]
    for tensors in facts.tensors:
        sizes[len(tensors.shape) < 2] += tensors.elements * tensors.count * tensors.trainable
    return sizes


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _cut_by_rows(found: Iterable[Tensors], processes: int) -> int:
    """The first rank's elements: as many rows as make the last rank's share the smallest, possibly none."""
    total = 0
    for tensors in found:
        rows = tensors.shape[0] if tensors.shape else 1
        total += -(-rows // processes) * (tensors.elements // rows) * tensors.count
    return total


_Formula = Callable[[ModelFacts, SupervisedConfig, str, int], MemoryPlan]
_FORMULAS: dict[str, _Formula] = {
    "single": _replicated,
    "ddp": _replicated,
    "zero1": _zero1_or_2,
    "zero2": _zero1_or_2,
    "zero3": _zero3,
    "fsdp2": _fsdp2,
}
