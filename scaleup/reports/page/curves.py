"""Lines of a run's metrics.jsonl go in; its curves come out, the ones that are looked at first in front."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scaleup.reports.html import Html, Limits, details, join, table, tag
from scaleup.reports.page.charts import Line, figure, line_chart
from scaleup.reports.training import Series


@dataclass(frozen=True)
class Curve:
    """Names the figures that one chart shows: each line by the first of its names that a run has logged."""

    title: str
    unit: str
    lines: Mapping[str, Sequence[str]]


CURVES = (
    Curve("Loss", "nats", {"training": ("loss",), "validation": ("eval_loss",)}),
    Curve("Reward", "mean score", {"rollouts": ("reward", "objective/scores"), "held out": ("eval/scores",)}),
    Curve(
        "KL to the reference",
        "nats a response",
        {"rollouts": ("kl_response", "objective/kl"), "held out": ("eval/kl",)},
    ),
    Curve("Throughput", "tokens a second", {"training": ("tokens_per_second",)}),
    Curve("Time of a rollout", "seconds", {"rollouts": ("time/rollout",)}),
    Curve("Memory", "MiB, most so far, first process", {"measured": ("memory_mib",)}),
)
"""Are shown first, in this order; every other figure is below them."""
HIDDEN = ("step", "num_tokens")


def curves(series: Series, x_name: str, limits: Limits, planned_mib: float | None, id_: str) -> Html:
    """Returns a chart for each figure that was logged. `x_name` says what a run counts; `planned_mib` is the memory
    that was planned; `id_` begins the name of what opens with a click."""
    left = {name: points for name, points in series.items() if name not in HIDDEN and points}
    shown = []
    for curve in CURVES:
        chosen = {label: next((key for key in keys if key in left), None) for label, keys in curve.lines.items()}
        found = [Line(label, left.pop(key), key.startswith("eval")) for label, key in chosen.items() if key]
        level = planned_mib if curve.lines.get("measured") == ("memory_mib",) else None
        shown += [_chart(curve.title, curve.unit, found, x_name, limits, level)] if found else []
    others = list(_others(left))
    more = [_chart(lines[0].name, "", lines, x_name, limits) for lines in others[: limits.charts]]
    if len(others) > limits.charts:
        more.append(tag("p", f"{limits.charts} of {len(others)} further figures", class_="note"))
    rows = [[name, f"{len(points):,}", *_ends(points)] for name, points in series.items() if name not in HIDDEN]
    header = ["figure", "points", "first", "last", "lowest", "highest"]
    return join(
        tag("div", shown, class_="charts") if shown else None,
        details(f"{len(others)} more figures", tag("div", more, class_="charts"), id_=f"{id_}-more")
        if others
        else None,
        details("The curves as numbers", table(header, rows, "Figures", limit=limits.rows), id_=f"{id_}-numbers")
        if rows
        else None,
    )


def _chart(
    title: str, unit: str, lines: Sequence[Line], x_name: str, limits: Limits, level: float | None = None
) -> Html:
    names: Sequence[str] | dict[str, str] = [line.name for line in lines] if len(lines) > 1 else ()
    if level is not None:
        names = {lines[0].name: "c0", "planned": "level"}
    return figure(title, unit, line_chart(title, lines, x_name, limits, level), names)


def _others(series: Series) -> Iterator[list[Line]]:
    """Yields the lines of each chart: a figure with that of held-out rows, which begins with `eval_`."""
    for name, points in series.items():
        of_held_out = f"eval_{name}"
        if of_held_out in series:
            yield [Line(name, points), Line(of_held_out, series[of_held_out], is_sparse=True)]
        elif not (name.startswith("eval_") and name.removeprefix("eval_") in series):
            yield [Line(name, points, is_sparse=name.startswith("eval"))]


def _ends(points: Sequence[tuple[float, float]]) -> list[str]:
    values = [value for _, value in points]
    return [f"{value:.5g}" for value in (values[0], values[-1], min(values), max(values))]
