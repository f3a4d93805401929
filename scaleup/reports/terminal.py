"""Plans go in; tables on a terminal come out."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from scaleup.plan.compute import TOKENS_A_PARAMETER
from scaleup.plan.facts import is_reward_model
from scaleup.plan.strategy import MARGIN
from scaleup.plan.types import BatchPlan, MemoryPlan, Plan

PARTS = (
    "weights",
    "reference",
    "gradients",
    "optimizer",
    "buffers",
    "gathered",
    "activations",
    "logits",
    "peak",
    "host",
)
NAMES = {"host": "offloaded"}
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show_plan(console: Console, plan: Plan) -> None:
    heading(console, f"plan of {plan.name} ({plan.stage})")
    facts = pairs_table()
    facts.add_row("model", f"{plan.model.architecture} ({plan.model.model_type}, {plan.model.task})")
    facts.add_row("from", plan.model.location)
    facts.add_row("parameters", f"{plan.model.num_parameters:,} ({plan.model.num_trainable_parameters:,} trainable)")
    if (experts := plan.model.experts) is not None:
        facts.add_row("", f"{plan.model.num_active_parameters:,} active for a token: {experts.shown}")
    if plan.model.parts is not None and plan.model.parts.num_parameters is not None:
        after = plan.model.parts.num_parameters
        facts.add_row("after the cut", f"{after:,} ({after / plan.model.num_parameters:.0%})")
    for group in plan.groups:
        where = f"{group.num_processes} x {group.device} on {group.num_nodes} node(s), {group.backend}"
        facts.add_row(
            f"group {group.name}",
            f"{where}, {group.threads_per_process} threads each, precision {group.mixed_precision}",
        )
        facts.add_row("strategy", f"{group.strategy}: {group.why}")
        if group.generation is not None:
            facts.add_row("generation", group.generation)
    for where, each in plan.models.items():
        if is_reward_model(where):
            shown = "reward model" if where == "reward.model" else where
            facts.add_row(shown, f"{each.architecture} from {each.location}")
    for key, value in _rollouts(plan):
        facts.add_row(key, value)
    if plan.batch is not None:
        batch, world = plan.batch, plan.groups[0].num_processes
        facts.add_row("batch", _batch(batch, world))
        facts.add_row(
            "rows",
            "not counted (streamed or from a hub)" if batch.num_train_rows is None else f"{batch.num_train_rows:,}",
        )
        unknown = f"known once the rows are {'read' if batch.unit == 'rows' else 'tokenized'}"
        facts.add_row("steps", unknown if batch.num_steps is None else f"{batch.num_steps:,}")
    if plan.checkpoint_copy is not None:
        copy = f"{size_text(plan.checkpoint_copy)} of main memory on a node"
        facts.add_row("checkpoints", f"written in the background, from a copy: {copy}")
    for key, value in _compute(plan):
        facts.add_row(key, value)
    for note in plan.notes:
        facts.add_row("note", note)
    facts.add_row("run folder", plan.run_folder)
    console.print(facts)
    _show_memory(console, plan)


def _rollouts(plan: Plan) -> Iterator[tuple[str, str]]:
    rollouts, world = plan.rollouts, plan.groups[0].num_processes
    if rollouts is None:
        return
    each = f" ({rollouts.num_generations} a prompt)" if rollouts.num_generations > 1 else ""
    yield "rollouts", f"{rollouts.num_rollouts:,} of {rollouts.rows} rows{each}, {rollouts.passes} passes over each"
    split = f"{world} processes x {rollouts.rank_mini_batch} rows, {rollouts.micro_batch} at a time"
    yield "mini-batches", f"{rollouts.num_mini_batches} a pass of {rollouts.mini_batch} rows = {split}"
    yield "steps", f"{rollouts.num_steps:,}"
    yield "prompts", "not counted (from a hub)" if rollouts.num_prompts is None else f"{rollouts.num_prompts:,}"


def _batch(batch: BatchPlan, world: int) -> str:
    split = f"x {batch.accumulation} accumulation x {world} processes ="
    if batch.tokens is not None:
        together = batch.tokens * batch.global_batch
        return f"up to {batch.tokens:,} tokens {split} up to {together:,}, padding included"
    return f"{batch.micro_batch} {batch.unit} {split} {batch.global_batch}"


def _compute(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yields FLOPs, hours, and how much the data is for a model of this size; nothing without a rate to go by."""
    compute = plan.compute
    if compute is None or compute.teraflops is None:
        return
    yield "compute", f"{compute.flops_per_token:,} FLOPs per token at data.max_length"
    if compute.tokens is None or compute.total_flops is None or compute.hours is None:
        yield "", "in all: known once the rows are read"
        return
    world, share = plan.groups[0].num_processes, f"{compute.utilisation:.0%}"
    yield "", f"{compute.total_flops:.3g} FLOPs for {compute.tokens:,} tokens, if all rows are of that length"
    yield "hours", f"{compute.hours:,.3g} at {share} of {world} x {compute.teraflops:,g} TFLOP/s, at most"
    ratio = compute.tokens / plan.model.num_parameters
    yield "data", f"up to {ratio:,.3g} tokens per parameter"
    yield "", f"(pre-training takes about {TOKENS_A_PARAMETER}, Hoffmann et al. 2022; fine-tuning far fewer)"


def _show_memory(console: Console, plan: Plan) -> None:
    """Prints a column a strategy; a part that no strategy has, or that is not known, has no row."""
    rows, chosen = plan.memory, plan.groups[0].strategy
    if not rows:
        return
    is_traced = any(row.peak is not None for row in rows)
    what = "peak < sum: parts peak at different times" if is_traced else "activations come on top"
    console.print(f"\nmemory of a rank ({what})", style="italic", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", style="bold", no_wrap=True)
    for row in rows:
        table.add_column(f"{row.strategy}\n(this run)" if row.strategy == chosen else row.strategy, justify="right")
    for part in PARTS:
        if any(sizes := [_size(row, part) for row in rows]):
            name = "sum" if part == "peak" and not is_traced else NAMES.get(part, part)
            table.add_row(name, *map(size_text, sizes))
    fitting = plan.fitting if is_traced else None
    if fitting is not None:
        table.add_row("fits", *("yes" if row.strategy in fitting else "no" for row in rows))
    console.print(table)
    for line in _memory_notes(plan, is_traced):
        console.print(line, highlight=False)


def _memory_notes(plan: Plan, is_traced: bool) -> Iterator[str]:
    if is_traced and plan.fitting is not None and plan.device_memory is not None:
        yield f"a rank has {size_text(plan.device_memory)}; {MARGIN:.0%} are left to libraries and fragmentation"
    for name, memory in plan.serving_memory.items():
        parts = [part for part in ("weights", "buffers") if _size(memory, part)]
        sizes = ", ".join(f"{part} {size_text(_size(memory, part))}" for part in parts)
        yield f"a rank of the {name} group ({memory.strategy}): {sizes}"
    for loading in plan.loading:
        name = "loading" if len(plan.loading) == 1 else f"loading the {loading.group} group"
        yield f"{name} takes {size_text(loading.rank)} of main memory a rank, {size_text(loading.node)} a node"
    if is_traced and plan.groups[0].device == "cuda":
        yield "activations are those of a CPU's kernels; a GPU's are about the same"


def _size(row: MemoryPlan, part: str) -> int:
    if part == "peak":
        return row.total if row.peak is None else row.peak
    return int(getattr(row, part) or 0)


def size_text(size: int) -> str:
    """Returns a number of bytes with three digits, in the largest unit that it reaches, e.g. 1.34 GiB."""
    if not size:
        return "0"
    amount, unit = float(size), 0
    while amount >= 999.5 and unit + 1 < len(UNITS):
        amount, unit = amount / 1024, unit + 1
    digits = 0 if unit == 0 or amount >= 99.95 else 1 if amount >= 9.995 else 2
    return f"{amount:,.{digits}f} {UNITS[unit]}"


def heading(console: Console, text: str) -> None:
    """Prints a table's title on a line of its own, in which a path stays whole."""
    console.print(text, style="italic", highlight=False, markup=False, soft_wrap=True)


def pairs_table() -> Table:
    """Returns an empty table of names and what they stand for."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table
