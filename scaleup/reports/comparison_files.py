"""Comparisons go in; tables come out: on a terminal, as JSON, CSV, Markdown, and an HTML page that needs nothing
else."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from scaleup.artifacts.files import write_json, write_text
from scaleup.reports.comparison import Comparison, Figure
from scaleup.reports.html import Html, page, table, tag
from scaleup.reports.terminal import heading

CSV_FIELDS = ("metric", "column", "value", "low", "high", "difference", "points", "difference_low", "difference_high")


@dataclass(frozen=True)
class Table:
    """Holds one table of a report as text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_text: bool = False
    """Tells whether the cells are texts of models, and no figures."""


def comparison_tables(compared: Comparison) -> Iterator[Table]:
    """Yields a report's tables: figures, differences, wins, cost, and the rows that differ most."""
    names = [column.name for column in compared.columns]
    figures = [
        [metric, *(_with_interval(of[name].value, of[name].interval) if name in of else "" for name in names)]
        for metric, of in compared.figures.items()
    ]
    yield Table(f"{compared.num_rows:,} rows, 95 % intervals", ["metric", *names], figures)
    differences = [
        [metric, name, *_difference(figure)]
        for metric, of in compared.figures.items()
        for name, figure in of.items()
        if figure.difference is not None
    ]
    header = ["metric", "model", "difference", "95 % interval", "percentage points", "McNemar p"]
    yield Table(f"less {names[0]}, paired by row", header, differences)
    won = [
        [metric, name, str(each.wins), str(each.ties), str(each.losses), _text(each.rate)]
        for metric, of in compared.wins.items()
        for name, each in of.items()
    ]
    if won:
        yield Table(f"rows won against {names[0]}", ["metric", "model", "wins", "ties", "losses", "win rate"], won)
    costs = list(dict.fromkeys(key for column in compared.columns for key in column.cost))
    cost = [[key, *(_text(column.cost.get(key)) for column in compared.columns)] for key in costs]
    yield Table("cost", ["", *names], cost)
    if compared.samples:
        yield _samples(compared, names)


def _samples(compared: Comparison, names: Sequence[str]) -> Table:
    rows = []
    for sample in compared.samples:
        told = _cell(sample.row.get("prompt", sample.row.get("text")))
        cells = [f"{sample.answers.get(name, '')}\n[{_text(sample.scores[name])}]".strip() for name in names]
        rows.append([str(sample.row["id"]), told, _reference(sample.row), *cells])
    header = ["row", "prompt", "reference", *names]
    return Table(f"rows that differ most by {compared.by}, which is in brackets", header, rows, is_text=True)


def _reference(row: Mapping[str, Any]) -> str:
    """Returns what a row's output should be: the reference, the label, or the response that is preferred."""
    if "chosen" in row:
        return "\n".join(f"{name}: {_cell(row[name])}" for name in ("chosen", "rejected"))
    return _cell(row.get("reference", row.get("label", "")))


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _difference(figure: Figure) -> list[str]:
    interval = figure.difference_interval
    return [
        f"{figure.difference:+.4g}",
        "" if interval is None else f"[{interval[0]:+.4g}, {interval[1]:+.4g}]",
        "" if figure.points is None else f"{figure.points:+.2f}",
        "" if figure.p_value is None else f"{figure.p_value:.3g}",
    ]


def _with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    return _text(value) + ("" if interval is None else f" [{', '.join(map(_text, interval))}]")


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) or value >= 1e4 else f"{value:.4g}"


def as_json(compared: Comparison) -> dict[str, Any]:
    """Returns a comparison as JSON holds it: the scores of rows, which stand in predictions.jsonl, aside."""
    return {
        "columns": [{"name": each.name, "source": each.source, "cost": dict(each.cost)} for each in compared.columns],
        "rows": compared.num_rows,
        "metrics": {
            metric: {name: asdict(figure) for name, figure in of.items()} for metric, of in compared.figures.items()
        },
        "wins": {
            metric: {name: {**asdict(each), "rate": each.rate} for name, each in of.items()}
            for metric, of in compared.wins.items()
        },
        "by": compared.by,
        "samples": [asdict(sample) for sample in compared.samples],
        "notes": list(compared.notes),
    }


def show_comparison(console: Console, compared: Comparison) -> None:
    for each in comparison_tables(compared):
        heading(console, each.title)
        shown = RichTable()
        for place, name in enumerate(each.header):
            shown.add_column(name, justify="left" if each.is_text or not place else "right", overflow="fold")
        for row in each.rows:
            shown.add_row(*row, end_section=each.is_text)
        console.print(shown, markup=False)
    for note in compared.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


def write_comparison(folder: Path, compared: Comparison) -> list[Path]:
    """Writes compare.json, .csv, .md and .html into a folder, and returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"csv": as_csv(compared), "md": as_markdown(compared), "html": as_html(compared)}
    files = [folder / f"compare.{kind}" for kind in ("json", *texts)]
    write_json(files[0], as_json(compared))
    for file, text in zip(files[1:], texts.values(), strict=True):
        write_text(file, text)
    return files


def as_csv(compared: Comparison) -> str:
    """Returns a line for each figure and each cost of each column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*CSV_FIELDS, "p_value"])
    for metric, of in compared.figures.items():
        for name, each in of.items():
            ends, paired = each.interval or (None, None), each.difference_interval or (None, None)
            writer.writerow([metric, name, each.value, *ends, each.difference, each.points, *paired, each.p_value])
    for column in compared.columns:
        for key, value in column.cost.items():
            writer.writerow([key, column.name, value, *[""] * (len(CSV_FIELDS) - 2)])
    return text.getvalue()


def as_markdown(compared: Comparison) -> str:
    parts = ["# Comparison"]
    for each in comparison_tables(compared):
        parts.append(f"## {_markdown(each.title)}")
        lines = [each.header, [" --- "] * len(each.header), *each.rows]
        parts.append("\n".join(f"| {' | '.join(map(_markdown, line))} |" for line in lines))
    parts += [f"- {_markdown(note)}" for note in compared.notes]
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    """Returns a text that stays in its cell, and means neither HTML nor a link."""
    return (
        html.escape(text, quote=False)
        .replace("\\", "\\\\")
        .replace("|", "\\|")
        .replace("](", "]\\(")
        .replace("\n", "<br>")
    )


def as_html(compared: Comparison) -> str:
    parts = [html_table(each, len(each.rows)) for each in comparison_tables(compared)]
    notes = (tag("p", note, class_="note") for note in compared.notes)
    return page("Comparison", tag("main", tag("h1", "Comparison"), parts, notes))


def html_table(shown: Table, limit: int) -> Html:
    """Returns the first rows of a table of a comparison."""
    return table(shown.header, shown.rows, shown.title, "texts" if shown.is_text else "figures", limit)
