"""A strategy, a model's facts and a run's settings go in; the bytes that a rank sends in an optimizer step come out: to
other ranks, and to and from main memory where something is offloaded.

Collectives are counted as rings: an all-reduce of S bytes over N ranks sends 2 (N - 1) / N S from each, an all-gather
to S bytes or a reduce-scatter from them half of that (Patarasuk and Yuan 2009, section 2; Thakur et al. 2005). What
travels is told by ZeRO (Rajbhandari et al. 2020, section 7) and was counted on the pinned versions of torch, Accelerate
and DeepSpeed (benchmarks/memory/fit.py): DeepSpeed all-reduces where the paper reduces and scatters."""

from __future__ import annotations

from dataclasses import dataclass

from scaleup.config.stages.base import TrainingConfig
from scaleup.plan.deepspeed import LIVE, PERSISTENT
from scaleup.plan.facts import ModelFacts
from scaleup.plan.memory import FLOAT32, quantized_bytes, width_of


@dataclass(frozen=True)
class Traffic:
    """Holds the bytes that a rank sends in an optimizer step."""

    communication: int
    """Counts what goes to other ranks."""
    offload: int
    """Counts what goes between a device and main memory, in both directions."""


def step_traffic(
    facts: ModelFacts, config: TrainingConfig, strategy: str, processes: int, micro_batches: int
) -> Traffic:
    """Returns the traffic of a step of so many micro-batches a rank. What ranks tell each other of a step beside
    gradients and weights (losses, norms) is a few hundred bytes and not counted."""
    width, trained = width_of(config), facts.num_trainable_parameters
    gathered = 0  # bytes that all-gathers and reduce-scatters make or take, whole
    if strategy == "ddp":
        gathered = 2 * FLOAT32 * trained
    elif strategy == "zero1":
        gathered = 3 * width * trained
    elif strategy == "zero2":
        gathered = (2 * micro_batches + 1) * width * trained
    elif strategy == "zero3":
        gathered = micro_batches * (_gathered_by_zero3(facts, config) + width * trained)
    elif strategy == "fsdp2":
        gathered = micro_batches * width * (2 * facts.num_parameters - _tail(facts) + trained)
    sent = gathered * (processes - 1) // processes
    return Traffic(sent, _offloaded(facts, config, strategy, processes, micro_batches))


def _gathered_by_zero3(facts: ModelFacts, config: TrainingConfig) -> int:
    """Returns the bytes of weights that are gathered for a micro-batch: all of them for the forward pass, and again for
    the backward pass those that are not alive still, which are up to LIVE elements. Small tensors are on each rank."""
    plain = sum(t.elements * t.count for t in facts.tensors if not t.quantized and t.elements > PERSISTENT)
    low = sum(quantized_bytes(t.shape, config.quantization) * t.count for t in facts.tensors if t.quantized)
    return width_of(config) * (plain + max(0, plain - LIVE)) + low + max(0, low - LIVE)


def _tail(facts: ModelFacts) -> int:
    """Returns the elements that FSDP2 gathers once a micro-batch and not twice: Accelerate leaves a language model's
    head as it is until its backward pass, which comes next."""
    return 0 if facts.task == "sequence_classification" else facts.vocab_size * facts.hidden_size


def _offloaded(facts: ModelFacts, config: TrainingConfig, strategy: str, processes: int, micro_batches: int) -> int:
    """Returns the bytes to and from main memory (Ren et al. 2021, section 4): with an offloaded optimizer a rank's
    gradients on their way out, under ZeRO-1 once a step and else with each micro-batch, and its new weights back; with
    offloaded parameters its shards as often as they are gathered."""
    parallel, width = config.parallel, width_of(config)
    total = 0
    if parallel.offload_optimizer:
        reductions = 1 if strategy == "zero1" else micro_batches
        total += width * facts.num_trainable_parameters * (reductions + 1) // processes
    if parallel.offload_parameters:
        total += micro_batches * _gathered_by_zero3(facts, config) // processes
    return total
