"""Plans and results as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from scaleup.artifacts.files import read_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.launcher.show_memory import compute_lines, show_memory
from scaleup.plan.types import BatchPlan, Plan


def show_plan(console: Console, plan: Plan) -> None:
    facts = _pairs("model")
    facts.add_row("model", f"{plan.model.architecture} ({plan.model.model_type}, {plan.model.task})")
    facts.add_row("from", plan.model.location)
    facts.add_row("parameters", f"{plan.model.num_parameters:,} ({plan.model.num_trainable_parameters:,} trainable)")
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
    if plan.reward is not None:
        facts.add_row("reward model", f"{plan.reward.architecture} from {plan.reward.location}")
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
    for key, value in compute_lines(plan):
        facts.add_row(key, value)
    for note in plan.notes:
        facts.add_row("note", note)
    facts.add_row("run folder", plan.run_folder)
    console.print(facts)
    show_memory(console, plan)


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


def show_training(console: Console, run: RunFolder) -> None:
    manifest = run.manifest()
    assert manifest is not None
    table = _pairs(manifest.name)
    for key, value in manifest.metrics.items():
        if value is not None:
            table.add_row(key, _number(value))
    table.add_row("model", str(run.model))
    console.print(table)


def show_evaluation(console: Console, run: RunFolder) -> None:
    """One column a model: before and after where there is a baseline, or the base and each of its adapters."""
    results: dict[str, dict[str, Any]] = read_json(run.path / "metrics.json")
    table = Table(title=f"evaluation in {run.path}", title_justify="left")
    table.add_column("metric")
    titles = {"baseline": "before", "model": "after"} if "baseline" in results else {"model": "value"}
    for key in results:
        table.add_column(titles.get(key, key), justify="right")
    for metric in next(iter(results.values())):
        table.add_row(metric, *(_number(found[metric]) for found in results.values()))
    console.print(table)
    console.print(f"model: {Plan.read(run.plan_file).model.location}", highlight=False, soft_wrap=True)


def show_generations(console: Console, run: RunFolder) -> None:
    """Each prompt with its answer behind it, or with a line for each adapter's."""
    for answer in read_json(run.path / "generations.json"):
        if "completion" in answer:
            console.print(answer["prompt"], style="dim", end="", markup=False, highlight=False)
            console.print(answer["completion"], markup=False, highlight=False)
            continue
        console.print(answer["prompt"], style="dim", markup=False, highlight=False)
        for name in list(answer)[1:]:
            console.print(f"  {name}: {answer[name]}", markup=False, highlight=False)


def show_export(console: Console, run: RunFolder) -> None:
    """What was written, and every difference of logits that was found on the way."""
    manifest = run.manifest()
    assert manifest is not None
    found = manifest.metrics
    table = _pairs(f"export in {run.path}")
    titles = {
        "adapter": "moved by the adapter",
        "merged": "moved by merging it",
        "rounded": f"moved by rounding to {found['dtype']}",
        "reloaded": "moved by writing and reading",
        "trained": f"from the base in {found.get('trained_in')} that it was trained on",
    }
    for key, title in titles.items():
        if key in found:
            bound = f", at most {found['tolerance']:g}" if key in ("merged", "reloaded") else ""
            table.add_row(title, f"{found[key]:.1e} of the largest logit{bound}")
    table.add_row("checked on", f"{found['sequences']} sequences, {found['rows']} of them rows")
    table.add_row("written", f"{found['num_parameters']:,} parameters as {found['format']}, {found['dtype']}")
    table.add_row("model", str(run.model))
    console.print(table)


def show_prune(console: Console, run: RunFolder) -> None:
    """Before and after."""
    manifest = run.manifest()
    assert manifest is not None
    found = dict(manifest.metrics)
    table = Table(title=f"pruned in {run.path}", title_justify="left")
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    for key in ("num_parameters", "num_non_embedding_parameters", "loss", "perplexity"):
        before, after = (found.pop(f"{key}_{when}", None) for when in ("before", "after"))
        if before is not None:
            table.add_row(key, _number(before), _number(after))
    console.print(table)
    others = _pairs("")
    for key, value in found.items():
        if value is not None:
            others.add_row(key, _number(value))
    others.add_row("model", str(run.model))
    console.print(others)


def show_card(console: Console, run: RunFolder) -> None:
    """A row a model: what it costs, how good it is, and whether that is a gain."""
    found: dict[str, dict[str, Any]] = read_json(run.path / "card.json")["models"]
    table = Table(title=f"deployment card in {run.path}", title_justify="left")
    for column in ("model", "parameters", "MB", "perplexity", "decode tokens/s"):
        table.add_column(column, justify="left" if column == "model" else "right")
    table.add_column("real gain?", overflow="fold")
    for name, each in found.items():
        decode = each["eager"].get("decode_tokens_per_second")
        numbers = (
            f"{each['bytes'] / 1e6:.1f}",
            f"{each['quality']['perplexity']:.2f}",
            f"{decode:.1f}" if decode else "",
        )
        said = each.get("verdict", {"gain": False, "words": ""})
        words = f"{'yes: ' if said['gain'] else ''}{said['words']}"
        table.add_row(name, f"{each['num_parameters']:,}", *numbers, words)
    console.print(table)
    console.print(f"card: {run.path / 'card.md'}", highlight=False, soft_wrap=True)


def _pairs(title: str) -> Table:
    table = Table(show_header=False, title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
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
