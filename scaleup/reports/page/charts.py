"""Numbers go in; pictures come out, as SVG within the page: lines, points with intervals, and their axes.

They are drawn for 360 units and as wide as a phone: there a unit is about a pixel, elsewhere a little more."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from scaleup.reports.html import Html, Limits, tag

Points = Sequence[tuple[float, float]]
"""Holds places (x, y), by rising x."""
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 10, 26
NUM_COLORS = 6
NUM_HINTS = 40
"""Bounds the places of a line that tell their numbers."""
SPAN_OF_LOG = 50
"""Is the ratio of the largest value to the smallest above which axes are logarithmic, where they may be."""


@dataclass(frozen=True)
class Line:
    """Stands for one line of a chart."""

    name: str
    points: Points
    is_sparse: bool = False
    """Tells whether its points are marked: they are measured now and then."""


@dataclass(frozen=True)
class Mark:
    """Stands for one point of a scatter chart, with the ends of its interval."""

    name: str
    x: float
    y: float
    low: float
    high: float
    is_filled: bool = True


def thinned(points: Points, count: int) -> list[tuple[float, float]]:
    """Returns at most about `count` of the points: the first, the last, and of each stretch between them the lowest and
    the highest, so that no peak is lost."""
    if len(points) <= count:
        return list(points)
    inner, stretches = points[1:-1], max(1, (count - 2) // 2)
    kept = [points[0]]
    for _, stretch in groupby(range(len(inner)), lambda place: place * stretches // len(inner)):
        of = [inner[place] for place in stretch]
        kept += sorted({min(of, key=lambda point: point[1]), max(of, key=lambda point: point[1])})
    return [*kept, points[-1]]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Returns about `count` round numbers between two."""
    if not high > low:
        return [low]
    exact = (high - low) / count
    size = 10.0 ** math.floor(math.log10(exact))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= exact * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns powers of ten between two positive numbers, and twice and five times these where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
        inside = [each for each in found if low * 0.999 <= each <= high * 1.001]
        if len(inside) >= 3:
            break
    return inside[:: math.ceil(len(inside) / 6)] if inside else [low, high]


def short(value: float) -> str:
    """Returns a number in few letters: `0.0021`, `3.5`, `12k`, `1.2M`, `2e-05`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Axis:
    """Maps numbers to places on a line of the picture, whose ends are `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, may_be_log: bool = False) -> Axis:
        """Returns the axis on which all values have a place, with some room; of equal values, one around them."""
        low, high = min(values), max(values)
        if may_be_log and low > 0 and high / low > SPAN_OF_LOG:
            return cls(low / 1.1, high * 1.1, start, end, is_log=True)
        if low == high:
            room = abs(low) / 2 or 1.0
            return cls(low - room, high + room, start, end)
        room = (high - low) * 0.06
        return cls(low - room if low < 0 or low - room > 0 else 0.0, high + room, start, end)

    @property
    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.is_log else ticks(self.low, self.high)

    def place(self, value: float) -> float:
        low, high, at = (math.log(each) if self.is_log else each for each in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)


def line_chart(title: str, lines: Sequence[Line], x_name: str, limits: Limits, level: float | None = None) -> Html:
    """Returns lines over `x_name`, each in a color of its own; `level`: a dashed line at a height. Values must be
    finite; a line without points is left out."""
    drawn = [line for line in lines if line.points]
    xs = [x for line in drawn for x, _ in (line.points[0], line.points[-1])]
    ys = [y for line in drawn for _, y in line.points] + ([] if level is None else [level])
    across = Axis(min(xs), max(max(xs), min(xs) + 1), LEFT, WIDTH - RIGHT)
    up = Axis.over(ys, HEIGHT - BOTTOM, TOP, may_be_log=True)
    parts = [*_grid(across, up, x_name)]
    if level is not None:
        y = up.place(level)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="level"))
    for number, line in enumerate(lines):
        if line.points:
            parts += _line(line, number, across, up, limits, x_name)
    told = "; ".join(f"{line.name}: {in_words(line.points, x_name)}" for line in drawn)
    return _picture(parts, f"{title}. {told}")


def _line(line: Line, number: int, across: Axis, up: Axis, limits: Limits, x_name: str) -> Iterator[Html]:
    points = thinned(line.points, limits.points)
    places = [(across.place(x), up.place(y)) for x, y in points]
    yield tag("polyline", points=" ".join(f"{x:g},{y:g}" for x, y in places), class_=f"line c{number % NUM_COLORS}")
    hints = set(range(0, len(points), math.ceil(len(points) / NUM_HINTS))) | {len(points) - 1}
    for place in sorted(hints):
        (x, y), (left, top) = points[place], places[place]
        shows = line.is_sparse or place == len(points) - 1
        kind = f"dot c{number % NUM_COLORS}" if shows else "hint"
        told = f"{line.name}: {y:.5g} at {x_name} {x:,g}"
        yield tag("circle", tag("title", told), cx=f"{left:g}", cy=f"{top:g}", r=3 if shows else 6, class_=kind)


def in_words(points: Points, x_name: str) -> str:
    """Returns what a line tells to those who do not see it."""
    (first, start), (last, end) = points[0], points[-1]
    if len(points) == 1:
        return f"{start:.4g} at {x_name} {first:,g}"
    low, high = (choose(points, key=lambda point: point[1]) for choose in (min, max))
    ends = f"from {start:.4g} at {x_name} {first:,g} to {end:.4g} at {last:,g}"
    return f"{ends}, lowest {low[1]:.4g} at {low[0]:,g}, highest {high[1]:.4g} at {high[0]:,g}"


def scatter_chart(title: str, marks: Sequence[Mark], x_name: str) -> Html:
    """Returns points with vertical intervals, each with its name."""
    across = Axis.over([mark.x for mark in marks], LEFT, WIDTH - RIGHT, may_be_log=True)
    up = Axis.over([y for mark in marks for y in (mark.low, mark.high)], HEIGHT - BOTTOM, TOP, may_be_log=True)
    parts = [*_grid(across, up, x_name)]
    for mark in marks:
        x, y, low, high = across.place(mark.x), up.place(mark.y), up.place(mark.low), up.place(mark.high)
        hint = tag("title", f"{mark.name}: {mark.y:.5g} ({mark.low:.5g} to {mark.high:.5g}) at {mark.x:.5g}")
        is_right = x > (LEFT + WIDTH) / 2
        parts.append(tag("line", x1=x, x2=x, y1=low, y2=high, class_="interval"))
        parts.append(tag("circle", hint, cx=x, cy=y, r=4, class_="dot c0" if mark.is_filled else "ring"))
        anchor = "end" if is_right else "start"
        parts.append(tag("text", mark.name, x=x + (-7 if is_right else 7), y=y - 5, text_anchor=anchor))
    told = "; ".join(f"{mark.name}: {mark.y:.4g} at {mark.x:.4g}" for mark in marks)
    return _picture(parts, f"{title}. {told}")


def _grid(across: Axis, up: Axis, x_name: str) -> Iterator[Html]:
    for value in up.ticks:
        y = up.place(value)
        yield tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
        yield tag("text", short(value), x=LEFT - 6, y=y + 4, text_anchor="end")
    is_count = x_name in ("step", "rollout")
    for value in across.ticks:
        if not is_count or value == int(value):
            yield tag("text", short(value), x=across.place(value), y=HEIGHT - BOTTOM + 15, text_anchor="middle")
    yield tag("text", x_name, x=LEFT - 8, y=HEIGHT - BOTTOM + 15, text_anchor="end")


def _picture(parts: Sequence[Html], told: str) -> Html:
    return tag("svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=told, class_="chart")


def legend(names: Mapping[str, str] | Sequence[str]) -> Html:
    """Returns the names of lines beside their colors: in the order of the lines, or a class for each name."""
    classes = names if isinstance(names, Mapping) else {name: f"c{n % NUM_COLORS}" for n, name in enumerate(names)}
    return tag("ul", (tag("li", tag("i", class_=kind), name) for name, kind in classes.items()), class_="legend")


def figure(title: str, unit: str, picture: Html, names: Mapping[str, str] | Sequence[str] = ()) -> Html:
    """Returns a picture with its title; `names` are those of several lines."""
    heading = tag("figcaption", tag("b", title), tag("span", f" {unit}") if unit else None)
    return tag("figure", heading, legend(names) if names else None, picture)
