"""Plans and results go in; tables on a terminal come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from scaleup.artifacts.files import read_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.plan.compute import TOKENS_A_PARAMETER
from scaleup.plan.strategy import MARGIN
from scaleup.plan.types import BatchPlan, MemoryPlan, Plan
from scaleup.reports.left_out import length_sentence

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
    _heading(console, f"plan of {plan.name} ({plan.stage})")
    facts = _pairs()
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
    if (reward := plan.models.get("reward.model")) is not None:
        facts.add_row("reward model", f"{reward.architecture} from {reward.location}")
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
    yield "rollouts", f"{rollouts.num_rollouts:,} of {rollouts.rows} rows, {rollouts.passes} passes over each"
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
    if plan.reward_memory is not None:
        parts = [part for part in ("weights", "buffers") if _size(plan.reward_memory, part)]
        sizes = ", ".join(f"{part} {size_text(_size(plan.reward_memory, part))}" for part in parts)
        yield f"a rank of the reward group ({plan.reward_memory.strategy}): {sizes}"
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


def show_training(console: Console, run: RunFolder) -> None:
    manifest = run.manifest()
    assert manifest is not None
    _heading(console, manifest.name)
    table = _pairs()
    for key, value in manifest.metrics.items():
        if value is not None:
            table.add_row(key, _number(value))
    table.add_row("model", str(run.model))
    console.print(table)
    if sentence := length_sentence(manifest.metrics, run.config.data.max_length):
        console.print(f"note: {sentence}", highlight=False)


def show_evaluation(console: Console, run: RunFolder) -> None:
    """Prints one column a model: before and after where there is a baseline, or the base and each of its adapters."""
    results: dict[str, dict[str, Any]] = read_json(run.path / "metrics.json")
    _heading(console, f"evaluation in {run.path}")
    table = Table()
    table.add_column("metric")
    titles = {"baseline": "before", "model": "after"} if "baseline" in results else {"model": "value"}
    for key in results:
        table.add_column(titles.get(key, key), justify="right")
    for metric in next(iter(results.values())):
        table.add_row(metric, *(_number(metrics[metric]) for metrics in results.values()))
    console.print(table)
    console.print(f"model: {Plan.read(run.plan_file).model.location}", highlight=False, soft_wrap=True)


def show_generations(console: Console, run: RunFolder) -> None:
    """Prints each prompt with its answer behind it, or with a line for each adapter's."""
    for answer in read_json(run.path / "generations.json"):
        if "completion" in answer:
            console.print(answer["prompt"], style="dim", end="", markup=False, highlight=False)
            console.print(answer["completion"], markup=False, highlight=False)
            continue
        console.print(answer["prompt"], style="dim", markup=False, highlight=False)
        for name in list(answer)[1:]:
            console.print(f"  {name}: {answer[name]}", markup=False, highlight=False)


def show_export(console: Console, run: RunFolder) -> None:
    """Prints what was written, and every difference of logits that was found on the way."""
    manifest = run.manifest()
    assert manifest is not None
    metrics = manifest.metrics
    _heading(console, f"export in {run.path}")
    table = _pairs()
    titles = {
        "adapter": "moved by the adapter",
        "merged": "moved by merging it",
        "rounded": f"moved by rounding to {metrics['dtype']}",
        "reloaded": "moved by writing and reading",
        "trained": f"from the base in {metrics.get('trained_in')} that it was trained on",
    }
    for key, title in titles.items():
        if key in metrics:
            bound = f", at most {metrics['tolerance']:g}" if key in ("merged", "reloaded") else ""
            table.add_row(title, f"{metrics[key]:.1e} of the largest logit{bound}")
    for key, value in _read_again(metrics):
        table.add_row(key, value)
    table.add_row("written", f"{metrics['num_parameters']:,} parameters as {metrics['format']}, {metrics['dtype']}")
    table.add_row("bytes", f"{metrics['bytes']:,}")
    table.add_row("model", str(run.model))
    console.print(table)


def _read_again(metrics: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what a format was checked on."""
    if metrics["format"] == "gguf":
        yield "checked on", f"{metrics['tokens']} tokens that llama.cpp continued {metrics['prompts']} prompts with"
        yield (
            "the same choice",
            f"{metrics['agreement']:.1%}, others at most {metrics['largest_gap']:.1e} below the best",
        )
        if metrics["first_difference"]:
            yield "first difference", metrics["first_difference"]
    elif metrics["format"] == "onnx":
        yield "checked on", f"{metrics['batches']} batches of several sizes, by ONNX Runtime"
    else:
        yield "checked on", f"{metrics['sequences']} sequences, {metrics['rows']} of them rows"


def show_quantization(console: Console, run: RunFolder) -> None:
    """Prints size and quality, before and after."""
    manifest = run.manifest()
    assert manifest is not None
    metrics = manifest.metrics
    _heading(console, f"quantization in {run.path}")
    table = _pairs()
    table.add_row("method", metrics["method"])
    table.add_row("bytes of weights", " -> ".join(_number(metrics[key]) for key in ("bytes_before", "bytes")))
    table.add_row("bits a parameter", " -> ".join(f"{metrics[key]:.2f}" for key in ("bits_before", "bits")))
    table.add_row("moved", f"{metrics['moved']:.1e} of the largest logit")
    if "perplexity" in metrics:
        table.add_row("perplexity", f"{metrics['perplexity_before']:,.4f} -> {metrics['perplexity']:,.4f}")
    table.add_row("model", str(run.model))
    console.print(table)


def show_card(console: Console, run: RunFolder) -> None:
    """Prints a row a model: what it costs, how good it is, and whether that is a gain."""
    models: dict[str, dict[str, Any]] = read_json(run.path / "card.json")["models"]
    _heading(console, f"deployment card in {run.path}")
    table = Table()
    for column in ("model", "parameters", "MB", "perplexity", "decode tokens/s"):
        table.add_column(column, justify="left" if column == "model" else "right")
    table.add_column("real gain?", overflow="fold")
    for name, model in models.items():
        decode = model["eager"].get("decode_tokens_per_second")
        numbers = (
            f"{model['bytes'] / 1e6:.1f}",
            f"{model['quality']['perplexity']:.2f}",
            f"{decode:.1f}" if decode else "",
        )
        verdict = model.get("verdict", {"gain": False, "words": ""})
        words = f"{'yes: ' if verdict['gain'] else ''}{verdict['words']}"
        table.add_row(name, f"{model['num_parameters']:,}", *numbers, words)
    console.print(table)
    console.print(f"card: {run.path / 'card.md'}", highlight=False, soft_wrap=True)


def show_prune(console: Console, run: RunFolder) -> None:
    """Prints sizes and quality, before and after."""
    manifest = run.manifest()
    assert manifest is not None
    metrics = dict(manifest.metrics)
    _heading(console, f"pruned in {run.path}")
    table = Table()
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    for key in ("num_parameters", "num_non_embedding_parameters", "loss", "perplexity"):
        before, after = (metrics.pop(f"{key}_{when}", None) for when in ("before", "after"))
        if before is not None:
            table.add_row(key, _number(before), _number(after))
    console.print(table)
    others = _pairs()
    for key, value in metrics.items():
        if value is not None:
            others.add_row(key, _number(value))
    others.add_row("model", str(run.model))
    console.print(others)


def _heading(console: Console, text: str) -> None:
    """Prints a table's title on a line of its own, in which a path stays whole."""
    console.print(text, style="italic", highlight=False, markup=False, soft_wrap=True)


def _pairs() -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _number(value: Any) -> str:
    return (
        f"{value:,.4f}".rstrip("0").rstrip(".")
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


TABLES: dict[str, Callable[[Console, RunFolder], None]] = {
    "training": show_training,
    "prune": show_prune,
    "quantize": show_quantization,
    "export": show_export,
    "card": show_card,
    "evaluate": show_evaluation,
    "generate": show_generations,
}
"""Maps what a stage's planner names as `shows` -> the function that prints it."""


def show_result(console: Console, run: RunFolder, shows: str) -> None:
    """Prints what a finished run came to."""
    TABLES[shows](console, run)
