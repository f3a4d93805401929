"""A config goes in; what could be changed of it so that it needs less memory comes out, as `key=value` overrides, one
setting after another. Nothing here knows whether they help or are allowed: plan/fit.py plans each.

A micro-batch, recomputed activations, the strategy, offloading and where a rollout's weights are gathered leave the
steps as they are (docs/design/one-trajectory.md). An adapter on a quantized base trains something else, and processes
cost devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from scaleup.config.adapters import LoraAdapter
from scaleup.config.run import RunConfig
from scaleup.config.stages.base import SupervisedConfig, TrainingConfig
from scaleup.plan.batches import accumulation, micro_batch
from scaleup.plan.groups import device_of
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import adapter_folder

Overrides = tuple[str, ...]
Setting = Literal["recomputation", "strategy", "offload", "gathering"]
SETTINGS: tuple[Setting, ...] = ("recomputation", "strategy", "offload", "gathering")

SHARDED = ("zero1", "zero2", "zero3", "fsdp2")
TIMES = (2, 4, 8, 16)
"""Lists by how much the number of processes is raised."""
LORA = ("adapter.type=lora", "adapter.target_modules=all-linear")
"""Is the adapter on a quantized base: of all linear layers, as QLoRA has it (Dettmers et al. 2023, section 4)."""


@dataclass(frozen=True)
class Alternatives:
    """Holds a config and by what names its training is changed."""

    config: RunConfig
    learner: TrainingConfig
    """Is the config by which it trains: its own, or that of its recovery."""
    key: Callable[[str], str]
    """Maps a key of `learner` -> the config's."""
    machine: Machine
    is_traced: bool
    """Tells whether its activations are in the plan: else nothing that changes them can be planned."""

    @property
    def count(self) -> int:
        return self.learner.parallel.num_processes

    @property
    def is_cuda(self) -> bool:
        return device_of(self.learner.parallel, self.machine) == "cuda"

    @property
    def divides(self) -> bool:
        """Returns whether a micro-batch may have another size in the same step: rows are counted, and activations are
        planned. Where tokens are, other numbers of them make other steps."""
        learner = self.learner
        by_tokens = getattr(learner.train, "tokens_per_device", None) is not None and not learner.data.packing
        return isinstance(learner, SupervisedConfig) and self.is_traced and not by_tokens

    @property
    def size(self) -> int:
        """Returns the rows or sequences of the config's own micro-batch."""
        assert isinstance(self.learner, SupervisedConfig)
        return micro_batch(self.learner)

    def sizes(self, count: int) -> list[int]:
        """Returns the sizes of a micro-batch that make the same step on `count` processes, the smallest first."""
        assert isinstance(self.learner, SupervisedConfig)
        rows, rest = divmod(self.size * accumulation(self.learner) * self.count, count)
        return [] if rest else [size for size in range(1, rows + 1) if rows % size == 0]

    def batch(self, size: int, count: int) -> Overrides:
        """Returns what makes a step of micro-batches of `size` on `count` processes, where the config says another."""
        learner = self.learner
        assert isinstance(learner, SupervisedConfig)
        train, now = learner.train, self.size
        times, rest = divmod(now * accumulation(learner) * self.count, size * count)
        assert not rest, "sizes() divide a step"
        changes = []
        if size != now and train.tokens_per_device is not None:
            changes.append(f"train.tokens_per_device={size * learner.data.max_length}")
        elif size != now:
            changes.append(f"train.per_device_train_batch_size={size}")
        is_told = train.global_batch_size is not None and train.gradient_accumulation_steps is None
        if times != accumulation(learner) and not is_told:
            changes.append(f"train.gradient_accumulation_steps={times}")
        return self._named(changes)

    def kept(self, count: int) -> Overrides:
        """Returns what keeps a step as it is on another number of processes: with the micro-batch there is or, where it
        is more than a rank's share then, the largest that divides that."""
        if count == self.count or not self.divides:
            return ()
        sizes = [size for size in self.sizes(count) if size <= self.size]
        return self.batch(sizes[-1], count) if sizes else ()

    def values(self, setting: Setting) -> list[Overrides]:
        """Returns the other values of a setting."""
        parallel = self.learner.parallel
        if setting == "recomputation":
            is_on = self.learner.gradient_checkpointing or not self.is_traced
            return [] if is_on else [self._named(["gradient_checkpointing=true"])]
        if setting == "strategy":
            whole = "single" if self.count == 1 else "ddp"
            now = whole if parallel.strategy in ("single", "ddp") else parallel.strategy
            return [(f"parallel.strategy={name}",) for name in (whole, *SHARDED) if name != now]
        if setting == "gathering":
            return [("parallel.gather_for_generation=auto",)] if parallel.gather_for_generation is True else []
        offloads = ["parallel.offload_optimizer=true", "parallel.offload_parameters=true"]
        done = [parallel.offload_optimizer, parallel.offload_parameters]
        left = [override for override, is_done in zip(offloads, done, strict=True) if not is_done]
        return [tuple(left[: number + 1]) for number in range(len(left))] if self.is_cuda else []

    def without_recomputation(self) -> list[Overrides]:
        is_on = self.learner.gradient_checkpointing and self.is_traced
        return [self._named(["gradient_checkpointing=false"])] if is_on else []

    def adapters(self) -> Iterator[Overrides]:
        """Yields LoRA on a base in 8 and in 4 bits; for a config that has LoRA, its base alone."""
        config = self.config
        if not isinstance(config, TrainingConfig) or config.quantization == "4bit":
            return
        if isinstance(config.adapter, LoraAdapter) or (config.adapter is None and adapter_folder(config.model.path)):
            new: Overrides = ()
        elif config.adapter is None:
            new = LORA
        else:
            return
        for bits in ("4bit",) if config.quantization == "8bit" else ("8bit", "4bit"):
            yield (*new, f"quantization={bits}")

    def counts(self) -> Iterator[tuple[int, Overrides]]:
        """Yields more processes: on the GPUs of the nodes there are, then on more nodes of the same kind. On CPUs the
        memory is a node's, so each node keeps its number of processes."""
        parallel = self.learner.parallel
        for times in TIMES:
            count = times * self.count
            on_a_node = self.count // parallel.num_nodes
            if self.is_cuda:
                on_a_node = max(on_a_node, min(count // parallel.num_nodes, self.machine.num_gpus))
            nodes, rest = divmod(count, on_a_node)
            if rest:
                continue
            changes = [f"parallel.num_processes={count}"]
            changes += [f"parallel.num_nodes={nodes}"] if nodes != parallel.num_nodes else []
            changes += ["parallel.strategy=ddp"] if parallel.strategy == "single" else []
            yield count, tuple(changes)

    def _named(self, changes: list[str]) -> Overrides:
        split = [change.partition("=") for change in changes]
        return tuple(f"{self.key(key)}={value}" for key, _, value in split)
