"""What a rank needs and what a run costs, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from scaleup.plan.compute import TOKENS_A_PARAMETER
from scaleup.plan.strategy import MARGIN
from scaleup.plan.types import MemoryPlan, Plan

PARTS = ("weights", "reference", "gradients", "optimizer", "buffers", "activations", "logits", "peak", "host")
NAMES = {"host": "offloaded"}


def show_memory(console: Console, plan: Plan) -> None:
    """What no strategy has has no column; neither has what is not known."""
    rows, chosen = plan.memory, plan.groups[0].strategy
    is_traced = any(row.peak is not None for row in rows)
    what = "the peak is less than the sum: the parts have their moments" if is_traced else "activations come on top"
    table = Table(title=f"memory of a rank ({what})", title_justify="left")
    shown = [part for part in PARTS if any(_size(row, part) for row in rows)]
    for column in ("strategy", *shown):
        table.add_column(NAMES.get(column, column), justify="left" if column == "strategy" else "right")
    fitting = plan.fitting if is_traced else None
    if fitting is not None:
        table.add_column("fits")
    for row in rows:
        name = f"{row.strategy} (this run)" if row.strategy == chosen else row.strategy
        fits = [] if fitting is None else ["yes" if row.strategy in fitting else "no"]
        table.add_row(name, *(mebibytes(_size(row, part)) for part in shown), *fits)
    console.print(table)
    if fitting is not None and plan.device_memory is not None:
        has = f"a rank has {mebibytes(plan.device_memory)}, of which {MARGIN:.0%} are left to libraries and fragments"
        console.print(has, highlight=False)
    if plan.reward_memory is not None:
        parts = [part for part in ("weights", "buffers") if _size(plan.reward_memory, part)]
        sizes = ", ".join(f"{part} {mebibytes(_size(plan.reward_memory, part))}" for part in parts)
        console.print(f"a rank of the reward group ({plan.reward_memory.strategy}): {sizes}", highlight=False)
    if is_traced and plan.groups[0].device == "cuda":
        console.print("activations are those of a CPU's kernels; a GPU's are about the same", highlight=False)


def _size(row: MemoryPlan, part: str) -> int:
    if part == "peak":
        return row.total if row.peak is None else row.peak
    return int(getattr(row, part) or 0)


def compute_lines(plan: Plan) -> Iterator[tuple[str, str]]:
    """Operations, hours, and how much the data is for a model of this size."""
    compute = plan.compute
    if compute is None:
        return
    yield "compute", f"{compute.flops_per_token:,} FLOPs a token of a row as long as it may be"
    if compute.tokens is None or compute.total_flops is None:
        yield "", "in all: known once the rows are read"
        return
    yield "", f"{compute.total_flops:.3g} FLOPs for {compute.tokens:,} tokens, if every row is as long as it may be"
    if compute.hours is None:
        unit = "GPU" if plan.groups[0].device == "cuda" else "process"
        yield "hours", f"not known without a rate: say --flops, the TFLOP/s of one {unit}"
    else:
        world, share = plan.groups[0].num_processes, f"{compute.utilisation:.0%}"
        yield "hours", f"{compute.hours:,.2f} at {share} of {world} x {compute.teraflops:,g} TFLOP/s, at most"
    ratio = compute.tokens / plan.model.num_parameters
    yield (
        "data",
        f"up to {ratio:,.3g} tokens a parameter; training from nothing takes about {TOKENS_A_PARAMETER} "
        "(Hoffmann et al. 2022), fine-tuning far fewer",
    )


def mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
