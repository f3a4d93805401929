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
SPANS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def plain(text: str) -> str:
    """Returns what a model or a file said without characters that a terminal would obey."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def show_plan(console: Console, plan: Plan) -> None:
    heading(console, f"plan of {plan.name} ({plan.stage})")
    facts = pairs_table()
    for key, value in plan_facts(plan):
        facts.add_row(key, value)
    console.print(facts)
    _show_memory(console, plan)


def plan_facts(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yields what a plan says, but for memory, by name; a name that is empty goes on with the one before."""
    yield from _model(plan)
    for group in plan.groups:
        where = f"{group.num_processes} x {group.device} on {group.num_nodes} node(s), {group.backend}"
        threads = f"{group.threads_per_process} threads each, precision {group.mixed_precision}"
        yield f"group {group.name}", f"{where}, {threads}"
        yield "strategy", f"{group.strategy}: {group.why}"
        if group.generation is not None:
            yield "generation", group.generation
    for where, each in plan.models.items():
        if is_reward_model(where):
            shown = "reward model" if where == "reward.model" else where
            yield shown, f"{each.architecture} from {each.location}"
    yield from _rollouts(plan)
    if plan.batch is not None:
        batch, world = plan.batch, plan.groups[0].num_processes
        yield "batch", _batch(batch, world)
        rows = batch.num_train_rows
        yield "rows", "not counted (streamed or from a hub)" if rows is None else f"{rows:,}"
        unknown = f"known once the rows are {'read' if batch.unit == 'rows' else 'tokenized'}"
        yield "steps", unknown if batch.num_steps is None else f"{batch.num_steps:,}"
    if plan.checkpoint_copy is not None:
        copy = f"{size_text(plan.checkpoint_copy)} of main memory on a node"
        yield "checkpoints", f"written in the background, from a copy: {copy}"
    yield from _compute(plan)
    for note in plan.notes:
        yield "note", note
    yield "run folder", plan.run_folder


def _model(plan: Plan) -> Iterator[tuple[str, str]]:
    model = plan.model
    yield "model", f"{model.architecture} ({model.model_type}, {model.task})"
    yield "from", model.location
    yield "parameters", f"{model.num_parameters:,} ({model.num_trainable_parameters:,} trainable)"
    if (experts := model.experts) is not None:
        yield "", f"{model.num_active_parameters:,} active for a token: {experts.shown}"
    if model.parts is not None and model.parts.num_parameters is not None:
        after = model.parts.num_parameters
        yield "after the cut", f"{after:,} ({after / model.num_parameters:.0%})"


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
    if not plan.memory:
        return
    what = "peak < sum: parts peak at different times" if is_traced(plan) else "activations come on top"
    console.print(f"\nmemory of a rank ({what})", style="italic", highlight=False)
    header, rows = memory_table(plan)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", style="bold", no_wrap=True)
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in _memory_notes(plan):
        console.print(line, highlight=False)


def memory_table(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of the memory that a rank takes: a column a strategy."""
    memory, chosen = plan.memory, plan.groups[0].strategy
    header = ["", *(f"{each.strategy}\n(this run)" if each.strategy == chosen else each.strategy for each in memory)]
    rows = []
    for part in PARTS:
        if any(sizes := [_size(each, part) for each in memory]):
            name = "sum" if part == "peak" and not is_traced(plan) else NAMES.get(part, part)
            rows.append([name, *map(size_text, sizes)])
    if is_traced(plan) and plan.fitting is not None:
        rows.append(["fits", *("yes" if each.strategy in plan.fitting else "no" for each in memory)])
    return header, rows


def planned_memory(plan: Plan) -> int | None:
    """Returns the bytes that a rank of the first group takes at most, as far as they were planned; None where they were
    not."""
    chosen = next((each for each in plan.memory if each.strategy == plan.groups[0].strategy), None)
    return None if chosen is None else _size(chosen, "peak")


def is_traced(plan: Plan) -> bool:
    """Returns whether a whole step was traced: then activations are known too."""
    return any(each.peak is not None for each in plan.memory)


def _memory_notes(plan: Plan) -> Iterator[str]:
    if is_traced(plan) and plan.fitting is not None and plan.device_memory is not None:
        yield f"a rank has {size_text(plan.device_memory)}; {MARGIN:.0%} are left to libraries and fragmentation"
    for name, memory in plan.serving_memory.items():
        parts = [part for part in ("weights", "buffers") if _size(memory, part)]
        sizes = ", ".join(f"{part} {size_text(_size(memory, part))}" for part in parts)
        yield f"a rank of the {name} group ({memory.strategy}): {sizes}"
    for loading in plan.loading:
        name = "loading" if len(plan.loading) == 1 else f"loading the {loading.group} group"
        yield f"{name} takes {size_text(loading.rank)} of main memory a rank, {size_text(loading.node)} a node"
    if is_traced(plan) and plan.groups[0].device == "cuda":
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


def span_text(seconds: float, num_units: int = 2) -> str:
    """Returns a span of time for people, in its largest units: `2 h 5 min`."""
    left = round(seconds)
    parts: list[str] = []
    for unit, name in SPANS:
        if left >= unit or (unit == 1 and not parts):
            parts.append(f"{left // unit} {name}")
        left %= unit
    return " ".join(parts[:num_units])


def heading(console: Console, text: str) -> None:
    """Prints a table's title on a line of its own, in which a path stays whole."""
    console.print(text, style="italic", highlight=False, markup=False, soft_wrap=True)


def pairs_table() -> Table:
    """Returns an empty table of names and what they stand for."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table
