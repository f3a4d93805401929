"""What a run came to goes in: figures beside those before, samples, a deployment card; sections of a page come out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import read_json, read_json_lines
from scaleup.artifacts.manifest import Manifest
from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.reports.comparison import Comparison, compare_columns
from scaleup.reports.comparison_files import Table, comparison_tables, html_table
from scaleup.reports.deployment import card_table, pareto
from scaleup.reports.evaluations import read_columns, read_evaluation
from scaleup.reports.html import Html, Limits, facts, join, shortened, table, tag
from scaleup.reports.page.charts import Mark, figure, scatter_chart
from scaleup.reports.results import evaluation_table, number
from scaleup.reports.rl import sample_pairs


@dataclass(frozen=True)
class Headline:
    """Holds the one figure by which a run is known, and what is known of it besides."""

    name: str
    value: str
    note: str = ""


BEFORE = "before"
"""Names what several models were before, and are compared with."""


def compared(evaluation: RunFolder) -> Comparison | None:
    """Returns the comparison of an evaluation's columns; None where there are none, or no scores of rows."""
    try:
        return _compared((("", str(evaluation.path)),), _versions([evaluation]))
    except ScaleupError:
        return None


def compared_runs(evaluations: Mapping[str, RunFolder]) -> Comparison:
    """Returns the comparison of several runs' evaluations, by their names, with what the first run was before.

    Raises ScaleupError where they do not compare."""
    targets = {name: str(folder.path) for name, folder in evaluations.items()}
    first = next(iter(targets.values()))
    if "baseline" in read_evaluation(Path(first)).figures:
        targets = {BEFORE: f"{first}:baseline", **targets}
    return _compared(tuple(targets.items()), _versions(evaluations.values()))


def _versions(evaluations: Iterable[RunFolder]) -> tuple[int, ...]:
    """Returns what tells these evaluations from later ones in the same folders."""
    return tuple(each.manifest_file.stat().st_mtime_ns for each in evaluations)


@lru_cache(maxsize=64)
def _compared(targets: tuple[tuple[str, str], ...], versions: tuple[int, ...]) -> Comparison:
    """Returns the comparison of columns by the names that they are given: once, as a live page asks again and again."""
    columns, rows = read_columns([target for _, target in targets])
    if len(targets) > 1:
        columns = [replace(column, name=name) for (name, _), column in zip(targets, columns, strict=True)]
    return compare_columns(columns, rows, num_shown=Limits.samples)


def comparison(compared: Comparison, limits: Limits, is_whole: bool = True) -> Html:
    """Returns the tables of a comparison, if `is_whole` with what each model took, and the rows that differ most."""
    shown = [each for each in comparison_tables(compared) if each.rows]
    parts = [_table(each, compared, limits) for each in (shown if is_whole else shown[:2])]
    return join(parts, (tag("p", note, class_="note") for note in compared.notes))


def _table(shown: Table, compared: Comparison, limits: Limits) -> Html:
    if not shown.is_text:
        return html_table(shown, limits.rows)
    rows = [[shortened(cell, limits.letters) for cell in row] for row in shown.rows[: limits.samples]]
    title = f"{len(rows):,} of {compared.num_rows:,} rows: {shown.title}"
    return html_table(replace(shown, rows=rows, title=title), limits.samples)


def evaluation(run: RunFolder, of: Comparison | None, limits: Limits) -> Html:
    """Returns what an evaluation has measured: beside what the model was before, where that was measured too."""
    if of is not None:
        return comparison(of, limits)
    header, rows = evaluation_table(read_json(run.path / "metrics.json"))
    return table(header, rows, "Figures with their 95 % intervals", limit=limits.rows)


def headline_of(of: Comparison) -> Headline | None:
    """Returns the last column's figure of what its rows are told apart by, with its interval, and what it was in the
    first column."""
    figures = of.figures.get(of.by or "", {})
    first, last = of.columns[0].name, of.columns[-1].name
    shown, before = figures.get(last), figures.get(first)
    if of.by is None or shown is None or shown.value is None or before is None or before.value is None:
        return None
    interval = "" if shown.interval is None else f" [{', '.join(f'{edge:.3g}' for edge in shown.interval)}]"
    note = f"before: {before.value:.3g}"
    if shown.difference is not None:
        ends = shown.difference_interval
        paired = "" if ends is None else f" [{', '.join(f'{edge:+.3g}' for edge in ends)}]"
        note += f"; difference {shown.difference:+.3g}{paired}"
    return Headline(of.by, f"{shown.value:.3g}{interval}", f"{note}; {of.num_rows:,} rows, 95 % intervals")


def samples(run: RunFolder, manifest: Manifest | None, limits: Limits) -> Html:
    """Returns held-out responses before and after training, or what was generated; nothing where there is neither."""
    folder, best = run.path / "samples", manifest.metrics.get("best_step") if manifest else None
    if pairs := sample_pairs(folder, best):
        cells = [
            [old["prompt"], old["response"], f"{old['score']:.3f}", new["response"], f"{new['score']:.3f}"]
            for old, new in pairs
        ]
        header = ["prompt", "before", "score", "after", "score"]
        return _samples(header, cells, "held-out prompts, answered before and after training", limits)
    file = run.path / "generations.jsonl"
    if not file.is_file():
        return Html()
    rows = read_json_lines(file)
    names = list(dict.fromkeys(key for row in rows for key in row if key not in ("id", "tools")))
    return _samples(names, [[_text(row.get(name)) for name in names] for row in rows], "prompts with answers", limits)


def _samples(header: Sequence[str], rows: Sequence[Sequence[str]], what: str, limits: Limits) -> Html:
    shown = [[shortened(cell, limits.letters) for cell in row] for row in rows[: limits.samples]]
    return table(header, shown, f"{len(shown):,} of {len(rows):,} {what}", "texts", limits.samples)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def card(run: RunFolder, limits: Limits) -> Html:
    """Returns a deployment card: a row a model, and perplexity by size; nothing of a run that made none."""
    file = run.path / "card.json"
    if not file.is_file():
        return Html()
    models: dict[str, dict[str, Any]] = read_json(file)["models"]
    header, rows = card_table(models, next(iter(models)))
    front = pareto(models)
    marks = [
        Mark(name, each["bytes"] / 1e6, each["quality"]["perplexity"], *each["quality"]["perplexity_interval"])
        for name, each in models.items()
    ]
    marks = [replace(mark, is_filled=mark.name in front) for mark in marks]
    picture = figure("Perplexity by size", "95 % intervals", scatter_chart("Perplexity by size", marks, "MB on disk"))
    told = "Filled: no other model is smaller, faster and better at once."
    return join(
        table(header, rows, "Models", "card", limits.rows),
        tag("div", picture, class_="charts"),
        tag("p", told, class_="note"),
    )


def results(manifest: Manifest, limits: Limits) -> Html:
    """Returns the figures of a manifest, those of several models in a column each."""
    nested = {key: value for key, value in manifest.metrics.items() if isinstance(value, dict)}
    flat = [(key, number(value)) for key, value in manifest.metrics.items() if value is not None and key not in nested]
    return join(facts(flat[: limits.rows], "As the manifest has it") if flat else None, _nested(nested, limits))


def _nested(nested: dict[str, dict[str, Any]], limits: Limits) -> Iterator[Html]:
    if nested:
        names = dict.fromkeys(name for metrics in nested.values() for name in metrics)
        rows = [[name, *(_text_of(metrics.get(name)) for metrics in nested.values())] for name in names]
        yield table(["", *nested], rows, "As the manifest has it", limit=limits.rows)


def _text_of(value: Any) -> str:
    return "" if value is None else number(value)
