"""This module holds the table of strategies, quantizations, adapters and precisions that train together: the planner
refuses by it, and docs/compatibility.md is written from it.

What cannot work is refused, with a reason and what to do instead. What is ok is trained on a CPU by a test: the loss
falls, and what should change does and nothing else (tests/distributed/test_compatibility.py goes through this very
table). The rest is untested here: it may run, and the plan says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from scaleup.config.adapters import PrefixAdapter
from scaleup.config.stages.base import TrainingConfig
from scaleup.errors import Problem
from scaleup.plan.model_path import adapter_folder, saved_type

STRATEGIES = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")
QUANTIZATIONS = (None, "8bit", "4bit")
ADAPTERS = ("full", "selective", "lora", "dora", "ia3", "adalora", "prompt_tuning", "prefix")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Cell:
    strategy: str
    quantization: str | None
    adapter: str
    """Is a config's `adapter.type`; dora is lora with use_dora, full is no adapter."""
    precision: str
    stage: str = "sft"


@dataclass(frozen=True)
class Verdict:
    status: Literal["ok", "refused", "untested here"]
    where: str = ""
    """Is the config key to change."""
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Refusal:
    """Refuses every cell whose parts are among these; an empty set stands for all."""

    where: str
    reason: str
    remedy: str
    strategies: frozenset[str] = frozenset()
    quantizations: frozenset[str | None] = frozenset()
    adapters: frozenset[str] = frozenset()
    precisions: frozenset[str] = frozenset()
    stages: frozenset[str] = frozenset()

    def covers(self, cell: Cell) -> bool:
        pairs = (
            (cell.strategy, self.strategies),
            (cell.quantization, self.quantizations),
            (cell.adapter, self.adapters),
            (cell.precision, self.precisions),
            (cell.stage, self.stages),
        )
        return all(not among or part in among for part, among in pairs)


_QUANTIZED: frozenset[str | None] = frozenset({"8bit", "4bit"})

REFUSALS = (
    Refusal(
        "quantization",
        "quantized weights cannot be trained",
        "give an adapter, e.g. adapter: {type: lora}, or leave quantization out",
        quantizations=_QUANTIZED,
        adapters=frozenset({"full"}),
    ),
    Refusal(
        "adapter.type",
        "selective saves the whole model, and a quantized one cannot be saved whole",
        "use lora, or leave quantization out",
        quantizations=_QUANTIZED,
        adapters=frozenset({"selective"}),
    ),
    Refusal(
        "parallel.strategy",
        "fsdp2 cannot shard an 8-bit base: torch makes plain parameters of it, and the scales of its rows are lost",
        "use ddp, zero1 or zero2",
        strategies=frozenset({"fsdp2"}),
        quantizations=frozenset({"8bit"}),
    ),
    Refusal(
        "parallel.strategy",
        "fsdp2's checkpoints hold every weight, and a quantized base must not travel in them",
        "use ddp, zero1 or zero2",
        strategies=frozenset({"fsdp2"}),
        quantizations=frozenset({"4bit"}),
    ),
    Refusal(
        "parallel.strategy",
        "zero3 does not shard an 8-bit base: each rank keeps the whole of it beside its shard (measured)",
        "use ddp, zero1 or zero2, or quantization: 4bit",
        strategies=frozenset({"zero3"}),
        quantizations=frozenset({"8bit"}),
    ),
    Refusal(
        "adapter.use_dora",
        "DoRA reads whole matrices beside the forward pass, and zero3 has only its shard of a quantized one there",
        "use lora without use_dora, or zero2",
        strategies=frozenset({"zero3"}),
        quantizations=frozenset({"4bit"}),
        adapters=frozenset({"dora"}),
    ),
    Refusal(
        "adapter.type",
        "under DeepSpeed in low precision the factors of ia3 turn a quantized matrix's results into float32",
        "use ddp, lora, or mixed_precision: no",
        strategies=frozenset({"zero1", "zero2", "zero3"}),
        quantizations=_QUANTIZED,
        adapters=frozenset({"ia3"}),
        precisions=frozenset({"bf16", "fp16"}),
    ),
    Refusal(
        "parallel.strategy",
        "adalora weighs and masks whole parameters by their gradients, and ZeRO keeps both in shards laid out flat",
        "use ddp",
        strategies=frozenset({"zero1", "zero2", "zero3"}),
        adapters=frozenset({"adalora"}),
    ),
    Refusal(
        "parallel.strategy",
        "adalora ranks the entries of all matrices together, and fsdp2 leaves each rank a part of every matrix",
        "use ddp",
        strategies=frozenset({"fsdp2"}),
        adapters=frozenset({"adalora"}),
    ),
    Refusal(
        "adapter.type",
        "a reward model's new head is trained with the adapter, and a soft prompt or prefix is saved without one",
        "use lora",
        adapters=frozenset({"prompt_tuning", "prefix"}),
        stages=frozenset({"reward"}),
    ),
    Refusal(
        "mixed_precision",
        "fp16 skips steps whose gradient overflows, and adalora's schedule of ranks goes by every step",
        'use bf16, or "no"',
        adapters=frozenset({"adalora"}),
        precisions=frozenset({"fp16"}),
    ),
    Refusal(
        "adapter.type",
        "fsdp2 in low precision casts the layers and not the prefix, which is float32 beside their queries",
        "use ddp, zero1, zero2 or zero3, or mixed_precision: no",
        strategies=frozenset({"fsdp2"}),
        adapters=frozenset({"prefix"}),
        precisions=frozenset({"bf16", "fp16"}),
    ),
    Refusal(
        "adapter.type",
        "a policy samples with a cache and trains without: nothing here shows virtual tokens to be the same in both",
        "use lora",
        adapters=frozenset({"prompt_tuning", "prefix"}),
        stages=frozenset({"ppo", "rl"}),
    ),
    Refusal(
        "adapter.type",
        "adalora takes ranks away between the passes over a rollout, whose ratios compare the policy with itself",
        "use lora",
        adapters=frozenset({"adalora"}),
        stages=frozenset({"ppo", "rl"}),
    ),
    Refusal(
        "adapter.type",
        "reinforcement learning trains a whole policy, or an adapter whose base is the reference",
        "use lora, or leave adapter out",
        adapters=frozenset({"selective"}),
        stages=frozenset({"ppo", "rl"}),
    ),
    Refusal(
        "adapter.type",
        "virtual tokens move the place at which a classifier's score is read, and nothing is scored with them",
        "use lora",
        adapters=frozenset({"prompt_tuning", "prefix"}),
        stages=frozenset({"classify"}),
    ),
    Refusal(
        "mixed_precision",
        "the gradient of a distillation's logits is made in the forward pass, before fp16's loss scale is known",
        'use bf16, or "no"',
        precisions=frozenset({"fp16"}),
        stages=frozenset({"distill"}),
    ),
    Refusal(
        "adapter.type",
        "adalora weighs the ranks of one model, and a distillation is two in one",
        "use lora",
        adapters=frozenset({"adalora"}),
        stages=frozenset({"distill"}),
    ),
    Refusal(
        "adapter.type",
        "a policy is compared with itself without its adapter, and adalora's schedule knows one model alone",
        "use lora",
        adapters=frozenset({"adalora"}),
        stages=frozenset({"dpo"}),
    ),
    Refusal(
        "adapter.type",
        "its reference is the model without it, and nothing here shows that to hold of virtual tokens",
        "use lora",
        adapters=frozenset({"prompt_tuning", "prefix"}),
        stages=frozenset({"dpo"}),
    ),
)

USES = ("evaluate", "generate", "export")
"""Names the stages that take what an adapter's training made."""
UNMERGEABLE = frozenset(
    {"prompt_tuning", "prefix", "multitask_prompt_tuning", "p_tuning", "cpt", "cartridge", "adaption_prompt"}
)
"""Names PEFT's methods that add tokens or activations, ours and those of adapters from elsewhere."""


def use_verdict(stage: str, adapter: str) -> Verdict:
    """Returns whether a stage can take the result of such a training, whatever strategy trained it. `evaluate` and
    `generate` load it on its base in 8 or 4 bits as well; an export is merged into the base as it was before that."""
    if stage == "export" and adapter in UNMERGEABLE:
        reason = "it feeds the model more than its input, and no weight could hold that"
        return Verdict(
            "refused", "model.path", reason, "use the adapter itself: evaluate and generate do, and PEFT loads it"
        )
    return Verdict("ok")


TESTED_PRECISIONS = frozenset({"no", "bf16"})
"""Leaves out fp16, whose loss scale skips steps: nothing that a CPU shows is proof for a GPU."""


@dataclass(frozen=True)
class Tested:
    """Holds which cells of a stage this project's tests train."""

    adapters: frozenset[str] = frozenset()
    """Names the adapters that tests train under every strategy."""
    precisions: frozenset[str] = frozenset()
    quantized: frozenset[str] = frozenset()
    """Names the strategies under which tests train `adapters` on a quantized base, in `quantized_precisions`."""
    quantized_precisions: frozenset[str] = frozenset({"no"})
    also: frozenset[tuple[str, str, str | None, str]] = frozenset()
    """Lists single cells beside these: (adapter, strategy, quantization, precision)."""
    kind: str = ""
    """Is what a note calls the stage, e.g. `PPO of `."""

    def covers(self, cell: Cell) -> bool:
        """Returns whether a test trains the cell."""
        if (cell.adapter, cell.strategy, cell.quantization, cell.precision) in self.also:
            return True
        if cell.adapter not in self.adapters or cell.precision not in self.precisions:
            return False
        return not cell.quantization or (
            cell.strategy in self.quantized and cell.precision in self.quantized_precisions
        )


NOTHING = Tested()


def verdict(cell: Cell, tested: Tested = NOTHING) -> Verdict:
    """Returns whether a cell trains; `tested` says which cells of its stage this project's tests train."""
    for refusal in REFUSALS:
        if refusal.covers(cell):
            return Verdict("refused", refusal.where, refusal.reason, refusal.remedy)
    return Verdict("ok" if tested.covers(cell) else "untested here")


def table(tested: Tested, stage: str = "sft") -> Iterator[tuple[Cell, Verdict]]:
    """Yields every cell of a stage with its verdict."""
    for strategy, quantization, adapter, precision in product(STRATEGIES, QUANTIZATIONS, ADAPTERS, PRECISIONS):
        cell = Cell(strategy, quantization, adapter, precision, stage)
        yield cell, verdict(cell, tested)


def cell_of(config: TrainingConfig, strategy: str | None = None) -> Cell:
    """Returns the cell of a config, under its own strategy or another."""
    own = strategy or config.parallel.strategy
    return Cell(own, config.quantization, adapter_of(config), str(config.mixed_precision), config.stage)


def compat_problems(config: TrainingConfig) -> Iterator[Problem]:
    """Yields what the table refuses. Under auto, what it refuses with every strategy."""
    answer = verdict(cell_of(config))
    if answer.status == "refused":
        yield Problem(answer.where, answer.reason, answer.remedy)


def allowed(config: TrainingConfig, strategies: list[str]) -> list[str]:
    """Returns the strategies that the table does not refuse."""
    return [name for name in strategies if verdict(cell_of(config, name)).status != "refused"]


def untested_notes(config: TrainingConfig, strategy: str, tested: Tested) -> list[str]:
    """Returns a note for the plan where no test trains what the config combines."""
    cell = cell_of(config, strategy)
    if verdict(cell, tested).status != "untested here":
        return []
    parts = [strategy, *([cell.quantization] if cell.quantization else []), cell.adapter]
    what = f"{tested.kind}{' with '.join(parts)} in precision {cell.precision}"
    return [f"{what} is not covered by this project's tests: docs/compatibility.md"]


def adapter_of(config: TrainingConfig) -> str:
    adapter = config.adapter
    saved = config.model.path if adapter is None else getattr(adapter, "path", None)
    folder = adapter_folder(saved) if saved else None
    if folder is not None:
        return saved_type(folder)
    if adapter is None:
        return "full"
    if isinstance(adapter, PrefixAdapter):
        return "prefix"
    return "dora" if getattr(adapter, "use_dora", False) else adapter.type
