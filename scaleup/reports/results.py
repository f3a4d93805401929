"""Finished runs go in; tables on a terminal come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scaleup.artifacts.files import read_json, read_json_lines
from scaleup.artifacts.run_folder import RunFolder
from scaleup.plan.types import Plan
from scaleup.records.chats import Chat, as_transcript
from scaleup.reports.left_out import length_sentence
from scaleup.reports.terminal import heading, pairs_table, plain

NUM_ANSWERS_SHOWN = 20
"""Is the number of prompts whose answers are printed."""
NUM_LABELS_SHOWN = 12
"""Bounds the labels whose confusion is printed."""


def show_training(console: Console, run: RunFolder) -> None:
    manifest = run.manifest()
    assert manifest is not None
    heading(console, manifest.name)
    table = pairs_table()
    for key, value in manifest.metrics.items():
        if value is not None:
            table.add_row(key, number(value))
    table.add_row("model", str(run.model))
    console.print(table)
    if sentence := length_sentence(manifest.metrics, run.config.data.max_length):
        console.print(f"note: {sentence}", highlight=False)


def show_evaluation(console: Console, run: RunFolder) -> None:
    """Prints one column a model: before and after where there is a baseline, or the base and each of its adapters."""
    results: dict[str, dict[str, Any]] = read_json(run.path / "metrics.json")
    heading(console, f"evaluation in {run.path}")
    header, rows = evaluation_table(results)
    table = Table()
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if confusion := results.get("model", {}).get("confusion"):
        _show_confusion(console, confusion)
    console.print(f"model: {Plan.read(run.plan_file).model.location}", highlight=False, soft_wrap=True)


def evaluation_table(results: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of an evaluation's table: a row a metric, a column a model."""
    titles = {"baseline": "before", "model": "after"} if "baseline" in results else {"model": "value"}
    names = dict.fromkeys(name for metrics in results.values() for name in metrics)
    shown = [name for name in names if name != "confusion" and not name.endswith(("_interval", "_stderr"))]
    rows = [[name, *(_figure(metrics, name) for metrics in results.values())] for name in shown]
    return ["metric", *(titles.get(key, key) for key in results)], rows


def _figure(metrics: dict[str, Any], name: str) -> str:
    """Returns a figure with its interval, where it has one; nothing where there is no figure."""
    interval = metrics.get(f"{name}_interval")
    if interval is None:
        return number(metrics[name]) if name in metrics else ""
    return f"{number(metrics[name])} [{', '.join(f'{edge:.4g}' for edge in interval)}]"


def _show_confusion(console: Console, confusion: dict[str, dict[str, int]]) -> None:
    """Prints true labels in rows and predicted ones in columns; a table too wide for a terminal stays in
    metrics.json."""
    if len(confusion) > NUM_LABELS_SHOWN:
        return
    heading(console, "rows: true label, columns: predicted")
    table = Table()
    for column in ("", *confusion):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for true, row in confusion.items():
        table.add_row(true, *(f"{count:,}" for count in row.values()))
    console.print(table)


def _prompt(row: Mapping[str, Any]) -> str:
    """Returns the prompt of a row as the terminal shows it: of a conversation its turns."""
    prompt = row["prompt"]
    return plain(prompt if isinstance(prompt, str) else as_transcript(Chat(prompt)))


def show_generations(console: Console, run: RunFolder) -> None:
    """Prints the first prompts, each with its answer behind it, or with a line for each of several, or of each
    adapter."""
    file = run.path / "generations.jsonl"
    rows = read_json_lines(file)
    for row in rows[:NUM_ANSWERS_SHOWN]:
        is_one = isinstance(row.get("completion"), str)
        goes_on = is_one and isinstance(row["prompt"], str)
        console.print(_prompt(row), style="dim", end="" if goes_on else "\n", markup=False, highlight=False)
        for name, texts in row.items():
            if name in ("id", "prompt", "tools"):
                continue
            for text in texts if isinstance(texts, list) else [texts]:
                shown = text if is_one else f"  {text}" if name == "completions" else f"  {name}: {text}"
                console.print(plain(shown), markup=False, highlight=False)
    manifest = run.manifest()
    assert manifest is not None
    if count := manifest.metrics.get("prompts_truncated"):
        console.print(f"note: {count} of {len(rows)} prompts are longer than fits and were cut", highlight=False)
    console.print(f"{len(rows):,} prompts: {file}", highlight=False, soft_wrap=True)


def show_export(console: Console, run: RunFolder) -> None:
    """Prints what was written, and every difference of logits that was found on the way."""
    manifest = run.manifest()
    assert manifest is not None
    metrics = manifest.metrics
    heading(console, f"export in {run.path}")
    table = pairs_table()
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
    heading(console, f"quantization in {run.path}")
    table = pairs_table()
    table.add_row("method", metrics["method"])
    table.add_row("bytes of weights", " -> ".join(number(metrics[key]) for key in ("bytes_before", "bytes")))
    table.add_row("bits a parameter", " -> ".join(f"{metrics[key]:.2f}" for key in ("bits_before", "bits")))
    table.add_row("moved", f"{metrics['moved']:.1e} of the largest logit")
    if "perplexity" in metrics:
        table.add_row("perplexity", f"{metrics['perplexity_before']:,.4f} -> {metrics['perplexity']:,.4f}")
    table.add_row("model", str(run.model))
    console.print(table)


def show_card(console: Console, run: RunFolder) -> None:
    """Prints a row a model: what it costs, how good it is, and whether that is a gain."""
    models: dict[str, dict[str, Any]] = read_json(run.path / "card.json")["models"]
    heading(console, f"deployment card in {run.path}")
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
    heading(console, f"pruned in {run.path}")
    table = Table()
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    for key in ("num_parameters", "num_non_embedding_parameters", "loss", "perplexity"):
        before, after = (metrics.pop(f"{key}_{when}", None) for when in ("before", "after"))
        if before is not None:
            table.add_row(key, number(before), number(after))
    console.print(table)
    others = pairs_table()
    for key, value in metrics.items():
        if value is not None:
            others.add_row(key, number(value))
    others.add_row("model", str(run.model))
    console.print(others)


def number(value: Any) -> str:
    """Returns a figure as it is shown: four decimals at most, thousands apart."""
    return (
        f"{value:,.4f}".rstrip("0").rstrip(".")
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def show_revisions(console: Console, run: RunFolder) -> None:
    """Prints the first prompts, each with what was answered and what it became."""
    file = run.path / "revisions.jsonl"
    rows = read_json_lines(file)
    for row in rows[:NUM_ANSWERS_SHOWN]:
        console.print(_prompt(row), style="dim", markup=False, highlight=False)
        for name, text in (("before", row["initial"]), ("after", row["completion"])):
            console.print(plain(f"  {name}: {text}"), markup=False, highlight=False)
    _show_metrics(console, run, f"revisions in {run.path}", file)


def show_judgements(console: Console, run: RunFolder) -> None:
    """Prints how sure the judge was, and how far the order decided."""
    _show_metrics(console, run, f"judgements in {run.path}", run.path / "pairs.jsonl")


def _show_metrics(console: Console, run: RunFolder, title: str, file: Path) -> None:
    """Prints all figures of a run with their intervals, and the file that it wrote."""
    manifest = run.manifest()
    assert manifest is not None
    heading(console, title)
    table = pairs_table()
    for name in manifest.metrics:
        if not name.endswith("_interval"):
            table.add_row(name, _figure(manifest.metrics, name))
    table.add_row("rows", str(file))
    console.print(table)


TABLES: dict[str, Callable[[Console, RunFolder], None]] = {
    "training": show_training,
    "prune": show_prune,
    "quantize": show_quantization,
    "export": show_export,
    "card": show_card,
    "evaluate": show_evaluation,
    "generate": show_generations,
    "revise": show_revisions,
    "judge": show_judgements,
}
"""Maps what a stage's planner names as `shows` -> the function that prints it."""


def show_result(console: Console, run: RunFolder, shows: str) -> None:
    """Prints what a finished run came to."""
    TABLES[shows](console, run)
