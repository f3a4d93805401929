"""Shapes of a model's parameters go in; the bytes that a rank holds while it trains come out, by exact arithmetic.

What is counted is held at the fullest moment of a step, which is the end of its backward pass: weights, gradients, what
the optimizer keeps, and the buffers that an engine keeps to communicate. Activations come on top, and what lives for a
moment only: the copy of a gradient that is on its way into a bucket, the temporaries of the optimizer's step.

The most a rank has at any moment (`peak`) is less than the sum of all parts, since moments differ: activations are gone
when the optimizer steps, and where nothing communicates a gradient takes space only once it is there. How many bytes a
micro-batch needs beside weights is traced on the model itself (describe/footprint.py).

The partitioning is that of ZeRO (Rajbhandari et al. 2020, section 3). The rest are facts of the pinned versions of
torch, Accelerate and DeepSpeed, measured by benchmarks/memory/held.py and told in docs/design/memory.md. AdamW keeps
two float32 moments a parameter (Loshchilov & Hutter 2019), SGD one with momentum and none without."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

from scaleup.config.run import RunConfig
from scaleup.config.schema import OptimizationConfig
from scaleup.config.stages.base import SupervisedConfig, TrainingConfig
from scaleup.plan.batches import micro_batch, passes_a_step
from scaleup.plan.deepspeed import BUCKET, LIVE, PERSISTENT
from scaleup.plan.facts import Arithmetic, Footprint, MicroBatch, ModelFacts, Tensors
from scaleup.plan.types import GroupPlan, MemoryPlan

FLOAT32 = 4
COPY_SHARE = 0.5
"""Is the share of a node's main memory that is free which copies of its ranks' checkpoints may take."""


def training_memory(
    facts: ModelFacts, config: TrainingConfig, strategy: str, processes: int, accumulates: bool = False
) -> MemoryPlan:
    """Returns the bytes that each of `processes` ranks holds, or the fullest rank, where padding makes them differ;
    `accumulates`: a step has several micro-batches."""
    formula = _FORMULAS[strategy]
    held = formula(facts, config, strategy, processes)
    return held if not accumulates else held.model_copy(update={"buffers": held.buffers + _accumulated(held)})


def _accumulated(held: MemoryPlan) -> int:
    """Returns the bytes in which micro-batches before the last add up their gradients, beside those that the last one
    is reduced into: DDP's buckets hold no gradient until then, and ZeRO-2 keeps a partition of each."""
    return held.gradients if held.strategy in ("ddp", "zero2") else 0


def inference_memory(facts: ModelFacts, strategy: str, quantization: str | None = None) -> MemoryPlan:
    """Returns the bytes of a whole model on each rank: in float32 whatever the precision of its arithmetic, quantized
    parts aside."""
    weights = _bytes(facts.tensors, FLOAT32, quantization)
    return MemoryPlan(strategy=strategy, weights=weights, gradients=0, optimizer=0)


def serving_memory(facts: ModelFacts, group: GroupPlan, quantization: str | None) -> MemoryPlan:
    """Returns the bytes of a rank that only scores: whole, or sharded as `_zero3` and `_fsdp2` do, without what
    training adds."""
    count = group.num_processes
    if group.strategy == "zero3":
        width = FLOAT32 if group.mixed_precision == "no" else 2
        small = sum(t.elements * t.count for t in facts.tensors if t.elements <= PERSISTENT)
        total = sum(t.elements * t.count for t in facts.tensors)
        shards = sum(_padded(t.elements, count) // count * t.count for t in facts.tensors)
        gathered = min(total - small, LIVE) if count > 1 else 0
        persistent = small if count > 1 else 0
        weights, buffers = width * (shards + persistent), width * gathered
    elif group.strategy == "fsdp2":
        weights, buffers = FLOAT32 * _cut_by_rows(facts.tensors, count), 2 * FLOAT32 * facts.largest_block
    else:
        return inference_memory(facts, group.strategy, quantization)
    return MemoryPlan(strategy=group.strategy, weights=weights, gradients=0, optimizer=0, buffers=buffers)


def gathered_bytes(facts: ModelFacts, config: TrainingConfig, held: MemoryPlan) -> int:
    """Returns the bytes of a model's weights whole on a rank, beside what it holds of them anyway, and of what it
    communicates with meanwhile; 0 where they are whole in any case. ZeRO-3 keeps its bucket, and small tensors are
    whole. FSDP2 gathers a block at a time, beside what it then keeps."""
    if held.strategy not in ("zero3", "fsdp2") or config.parallel.num_processes == 1:
        return 0
    width = width_of(config)
    if held.strategy == "fsdp2":
        return _bytes(facts.tensors, width, config.quantization) + held.buffers
    large = [t for t in facts.tensors if t.quantized or t.elements > PERSISTENT]
    return _bytes(large, width, config.quantization) + width * BUCKET


def quantized_bytes(shape: tuple[int, ...], quantization: str | None) -> int:
    """Returns the bytes of one matrix as bitsandbytes keeps it. LLM.int8: a byte a number and a float32 a row. nf4:
    half a byte a number, a byte for each block of 64, a float32 for each 256 of these, two tables (of 16 and 256
    float32) and an offset."""
    elements = prod(shape)
    if quantization == "8bit":
        return elements + FLOAT32 * shape[0]
    blocks = -(-elements // 64)
    return -(-elements // 2) + blocks + FLOAT32 * (-(-blocks // 256) + 16 + 256 + 1)


def _bytes(tensors: Iterable[Tensors], width: int, quantization: str | None) -> int:
    """Returns the bytes of whole tensors, with `width` bytes a number that is not quantized."""
    return sum(
        t.count * (quantized_bytes(t.shape, quantization) if t.quantized else width * t.elements) for t in tensors
    )


def _replicated(facts: ModelFacts, config: TrainingConfig, strategy: str, processes: int) -> MemoryPlan:
    """Returns the memory of `single` and `ddp`: everything is on each rank. Weights and gradients stay float32 under
    autocast; DDP's buckets are the gradients themselves (`gradient_as_bucket_view`)."""
    trainable = facts.num_trainable_parameters
    return MemoryPlan(
        strategy=strategy,
        weights=_bytes(facts.tensors, FLOAT32, config.quantization),
        gradients=FLOAT32 * trainable,
        optimizer=optimizer_bytes(facts, config),
    )


def optimizer_bytes(facts: ModelFacts, config: TrainingConfig) -> int:
    """Returns the bytes that are kept beside whole weights where these are stepped. bitsandbytes has a byte a moment,
    a float32 for each 256 of them, of tensors of 4,096 elements and more, and a table of 256 float32 for each kind of
    moment; float32 moments of smaller ones."""
    whole = FLOAT32 * kept_a_weight(config) * facts.num_trainable_parameters
    if config.train.optimizer != "adamw_8bit":
        return whole
    large = [t for t in facts.tensors if t.trainable and t.elements >= 4096]
    spared = sum(t.count * (3 * t.elements - FLOAT32 * -(-t.elements // 256)) for t in large)
    return whole - moments(config.train) * (spared - FLOAT32 * 256 * bool(large))


def _zero1_or_2(facts: ModelFacts, config: TrainingConfig, strategy: str, processes: int) -> MemoryPlan:
    """Returns the memory of ZeRO-1 and ZeRO-2. DeepSpeed casts the model to the run's precision, lays each of the
    optimizer's groups out flat, padded to twice the number of ranks, and keeps a float32 copy of a rank's partition
    beside it, also of a float32 model.

    ZeRO-1 holds every gradient until the end of the backward pass, ZeRO-2 its partition's. Offloaded, the partition's
    gradients lie in main memory in float32, with the partition's new weights on their way back."""
    width = width_of(config)
    padded = sum(_padded(size, 2 * processes) for size in _flat_groups(facts))
    partition = padded // processes
    frozen = _bytes((t for t in facts.tensors if not t.trainable), width, config.quantization)
    largest = max(tensors.elements for tensors in facts.tensors if tensors.trainable)
    is_first, offloads = strategy == "zero1", config.parallel.offload_optimizer
    state = FLOAT32 * (1 + kept_a_weight(config)) * partition
    staging = width * largest if offloads else 0
    return MemoryPlan(
        strategy=strategy,
        weights=width * padded + frozen,
        gradients=width * (facts.num_trainable_parameters if is_first else 0 if offloads else partition),
        optimizer=0 if offloads else state,
        buffers=width * BUCKET + staging,
        host=state + (FLOAT32 + width) * partition + staging if offloads else 0,
    )


def _zero3(facts: ModelFacts, config: TrainingConfig, strategy: str, processes: int) -> MemoryPlan:
    """Returns the memory of ZeRO-3. DeepSpeed shards each tensor by itself, padded to the number of ranks, and keeps a
    float32 copy of a rank's shards. Small tensors are whole on each rank as well. Others are gathered ahead of their
    use, as many as the settings allow. Of a 4-bit base a product keeps the gathered matrix until its backward pass."""
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
    state = FLOAT32 * (1 + kept_a_weight(config)) * trainable
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


def _fsdp2(facts: ModelFacts, config: TrainingConfig, strategy: str, processes: int) -> MemoryPlan:
    """Returns the memory of FSDP2. torch cuts each tensor along its first dimension; the first rank's piece is the
    largest. Shards, their gradients and the optimizer's state are float32 in any precision. To communicate it takes up
    to four times its largest block in float32, and half of that number in less."""
    width = width_of(config)
    shards = _cut_by_rows(facts.tensors, processes)
    trainable = _cut_by_rows((t for t in facts.tensors if t.trainable), processes)
    return MemoryPlan(
        strategy=strategy,
        weights=FLOAT32 * shards,
        gradients=FLOAT32 * trainable,
        optimizer=FLOAT32 * kept_a_weight(config) * trainable,
        buffers=(4 if width == FLOAT32 else 2) * width * facts.largest_block,
    )


def checkpoint_copy(config: RunConfig, trained: ModelFacts, strategy: str, memory: int | None) -> int | None:
    """Returns the bytes of main memory that the fullest node needs for a copy of a checkpoint: float32 weights and
    moments of what is trained, on rank 0 where they are replicated, else shared out over the ranks. None where
    checkpoints are not written in the background: nothing is trained, the config wants none, or a node's `memory`
    (bytes; None: unknown) has no room for it."""
    if not isinstance(config, TrainingConfig) or not config.train.async_save:
        return None
    whole = FLOAT32 * (1 + moments(config.train)) * trained.num_trainable_parameters
    size = whole if strategy in ("single", "ddp") else -(-whole // config.parallel.num_nodes)
    return size if memory is None or size <= COPY_SHARE * memory else None


def moments(train: OptimizationConfig) -> int:
    return {"adamw": 2, "adamw_8bit": 2, "sgd": 1 if train.momentum else 0}[train.optimizer]


def kept_a_weight(config: TrainingConfig) -> int:
    """Returns how many float32 numbers are kept beside each trained weight where it is stepped: moments, and what a
    stage adds."""
    return moments(config.train) + (config.copies_a_weight if isinstance(config, SupervisedConfig) else 0)


def width_of(config: TrainingConfig) -> int:
    """Returns the bytes of a number in the run's precision."""
    return FLOAT32 if config.mixed_precision == "no" else 2


def _flat_groups(facts: ModelFacts) -> list[int]:
    """Returns the elements of the optimizer's groups: matrices, which decay, and vectors, which do not
    (train/optim.py)."""
    sizes = [0, 0]
    for tensors in facts.tensors:
        sizes[len(tensors.shape) < 2] += tensors.elements * tensors.count * tensors.trainable
    return sizes


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _cut_by_rows(shapes: Iterable[Tensors], processes: int) -> int:
    """Returns the number of elements on the first rank: as many rows as make the last rank's share the smallest,
    possibly none."""
    total = 0
    for tensors in shapes:
        rows = tensors.shape[0] if tensors.shape else 1
        total += -(-rows // processes) * (tensors.elements // rows) * tensors.count
    return total


_Formula = Callable[[ModelFacts, TrainingConfig, str, int], MemoryPlan]
_FORMULAS: dict[str, _Formula] = {
    "single": _replicated,
    "ddp": _replicated,
    "zero1": _zero1_or_2,
    "zero2": _zero1_or_2,
    "zero3": _zero3,
    "fsdp2": _fsdp2,
}


def arithmetics_of(precision: str) -> tuple[Arithmetic, ...]:
    """Returns the arithmetics of all strategies at a precision."""
    return ("float32",) if precision == "no" else ("autocast", "low")


def micro_batch_of(config: SupervisedConfig) -> MicroBatch:
    """Returns the most that a rank trains on at a time, with rows of `max_length` tokens."""
    by_tokens = config.train.tokens_per_device is not None and not config.data.packing
    return MicroBatch(
        rows=micro_batch(config),
        tokens=config.train.tokens_per_device if by_tokens else None,
        max_length=config.data.max_length,
        packing=config.data.packing,
        gradient_checkpointing=config.gradient_checkpointing,
        arithmetics=arithmetics_of(config.mixed_precision),
    )


def predicted_memory(facts: ModelFacts, config: TrainingConfig, strategy: str, processes: int) -> MemoryPlan:
    """Returns the bytes that a rank holds under `strategy`, and its peak where the model could be traced."""
    accumulates = isinstance(config, SupervisedConfig) and passes_a_step(config) > 1
    held = training_memory(facts, config, strategy, processes, accumulates)
    is_whole = strategy in ("single", "ddp")
    arithmetic: Arithmetic = "float32" if config.mixed_precision == "no" else "autocast" if is_whole else "low"
    footprint = facts.footprint(arithmetic)
    if footprint is None or not isinstance(config, SupervisedConfig):
        return held
    most, step = footprint.most(0.0), _step(held, config, facts)
    logits = min(most, footprint.logits)
    peak = max(_backward(held, footprint, config, processes), held.weights + held.optimizer + step)
    return held.model_copy(update={"activations": most - logits, "logits": logits, "step": step, "peak": peak})


def _backward(held: MemoryPlan, footprint: Footprint, config: SupervisedConfig, processes: int) -> int:
    """Returns the bytes at the fullest moment from the start of a forward to the end of a backward pass. `single`,
    ZeRO-1 and FSDP2 hold gradients as they come, where the others have space for all of theirs from the start. While
    DeepSpeed reduces a bucket there is a copy of it, the first once a bucket is full."""
    settled, share, absent = footprint.moments[-1][1], 0.0, 0
    if held.strategy in ("single", "zero1", "fsdp2") and passes_a_step(config) == 1 and settled:
        share, absent = held.gradients / settled, held.gradients
    most = footprint.most(share)
    if held.strategy.startswith("zero") and processes > 1:
        bucket = min(width_of(config) * BUCKET, settled)
        most = max(most, footprint.after(bucket, share) + bucket)
    return held.total - absent + most


def _step(held: MemoryPlan, config: SupervisedConfig, facts: ModelFacts) -> int:
    """Returns the bytes of gradients during the optimizer's step. torch's fused AdamW takes nothing more; DeepSpeed
    lays its partition of them out flat, in the run's precision and in float32. A term of the weights takes as much as
    it keeps, of one tensor at a time."""
    if not held.strategy.startswith("zero"):
        largest = max((t.elements for t in facts.tensors if t.trainable), default=0)
        return held.gradients + FLOAT32 * config.copies_a_weight * largest
    if held.host and not held.optimizer:
        return held.gradients  # the step is taken in main memory
    partition = held.optimizer // (FLOAT32 * (1 + kept_a_weight(config)))  # elements
    low = FLOAT32 if config.mixed_precision != "no" else 0
    return partition * (width_of(config) * 2 + low + FLOAT32 * config.copies_a_weight)
