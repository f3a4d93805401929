"""Things that were made from one another go in; a picture comes out: from left to right, for phones from the top."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from scaleup.reports.html import Html, tag

BOX_WIDTH, BOX_HEIGHT = 150, 46
ALONG, ACROSS = 120, 20
"""Are the gaps between boxes: along the arrows, and beside one another."""
NAMES_AT = (0.74, 0.5, 0.26)
"""Is how far along its arrow a name stands: of arrows to one box, one name is behind the other."""
LETTERS = 21
"""Bounds the letters of a line in a box."""


@dataclass(frozen=True)
class Node:
    """Stands for one thing: two lines of text, and the class of its color."""

    title: str
    kind: str
    color: str = ""
    """Is `good`, `bad`, `busy` or nothing."""
    link: str | None = None


@dataclass(frozen=True)
class Arrow:
    """Leads from what something was made from to it."""

    source: str
    target: str
    name: str = ""


def graph(columns: Sequence[Mapping[str, Node]], arrows: Iterable[Arrow], told: str) -> Html:
    """Returns the picture of nodes, by their names, in columns; arrows lead from earlier columns to later ones. `told`
    says what it shows."""
    names: dict[tuple[str, str], dict[str, None]] = {}
    for each in arrows:
        names.setdefault((each.source, each.target), {})[each.name] = None
    arrows = [Arrow(source, target, ", ".join(of)) for (source, target), of in names.items()]
    nodes = [node for column in columns for node in column.values()]
    words = f"{told}: {', '.join(f'{node.title} ({node.kind})' for node in nodes)}"
    return tag(
        "div",
        (_drawn(columns, arrows, words, is_upright) for is_upright in (False, True)),
        class_="scroll graph",
        tabindex="0",
        role="group",
        aria_label=told,
    )


def layers(parents: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Returns names in columns, each behind all of its parents; `parents` holds these before the names themselves."""
    depths: dict[str, int] = {}
    for name, of in parents.items():
        depths[name] = 1 + max((depths.get(parent, 0) for parent in of), default=-1)
    return [[name for name, depth in depths.items() if depth == column] for column in range(max(depths.values()) + 1)]


def _drawn(columns: Sequence[Mapping[str, Node]], arrows: Sequence[Arrow], told: str, is_upright: bool) -> Html:
    rows = max(map(len, columns))
    box, gap = (BOX_WIDTH, ACROSS) if is_upright else (BOX_HEIGHT, ACROSS)
    step = (BOX_HEIGHT + ALONG / 2) if is_upright else (BOX_WIDTH + ALONG)
    places: dict[str, tuple[float, float]] = {}
    for number, column in enumerate(columns):
        for row, name in enumerate(column):
            along = 4 + number * step
            across = 4 + (rows - len(column)) * (box + gap) / 2 + row * (box + gap)
            places[name] = (across, along) if is_upright else (along, across)
    width = 8 + max(x for x, _ in places.values()) + BOX_WIDTH - 4
    height = 8 + max(y for _, y in places.values()) + BOX_HEIGHT - 4
    named = {name: node for column in columns for name, node in column.items()}
    return tag(
        "svg",
        [_arrow(arrow, places, is_upright) for arrow in arrows],
        [_box(node, places[name]) for name, node in named.items()],
        _names(arrows, places, is_upright),
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
        aria_label=told,
        class_="upright" if is_upright else "wide",
    )


def _box(node: Node, place: tuple[float, float]) -> Html:
    x, y = place
    parts = [
        tag("title", f"{node.title} ({node.kind})"),
        tag("rect", x=f"{x:g}", y=f"{y:g}", width=BOX_WIDTH, height=BOX_HEIGHT, rx=8),
        tag("text", _cut(node.title), x=f"{x + BOX_WIDTH / 2:g}", y=f"{y + 20:g}", class_="title"),
        tag("text", _cut(node.kind), x=f"{x + BOX_WIDTH / 2:g}", y=f"{y + 36:g}"),
    ]
    return tag("g", parts, class_=f"box {node.color}".strip())


Places = Mapping[str, tuple[float, float]]


def _ends(arrow: Arrow, places: Places, is_upright: bool) -> tuple[float, float, float, float]:
    """Returns where an arrow begins and ends: x, y, x, y."""
    (x, y), (to_x, to_y) = places[arrow.source], places[arrow.target]
    if is_upright:
        return x + BOX_WIDTH / 2, y + BOX_HEIGHT, to_x + BOX_WIDTH / 2, to_y
    return x + BOX_WIDTH, y + BOX_HEIGHT / 2, to_x, to_y + BOX_HEIGHT / 2


def _arrow(arrow: Arrow, places: Places, is_upright: bool) -> Html:
    x, y, to_x, to_y = _ends(arrow, places, is_upright)
    if is_upright:
        middle = (y + to_y) / 2
        path, head = f"M{x:g},{y:g}C{x:g},{middle:g} {to_x:g},{middle:g} {to_x:g},{to_y - 5:g}", (-4, -7, 4, -7)
    else:
        middle = (x + to_x) / 2
        path, head = f"M{x:g},{y:g}C{middle:g},{y:g} {middle:g},{to_y:g} {to_x - 5:g},{to_y:g}", (-7, -4, -7, 4)
    tip = f"{to_x:g},{to_y:g} {to_x + head[0]:g},{to_y + head[1]:g} {to_x + head[2]:g},{to_y + head[3]:g}"
    return tag("g", tag("path", d=path), tag("polygon", points=tip), class_="arrow")


def _names(arrows: Sequence[Arrow], places: Places, is_upright: bool) -> Iterator[Html]:
    """Yields the names of arrows, above all else."""
    seen: dict[str, int] = {}
    for arrow in arrows:
        at = NAMES_AT[seen.get(arrow.target, 0) % len(NAMES_AT)]
        seen[arrow.target] = seen.get(arrow.target, 0) + 1
        x, y, to_x, to_y = _ends(arrow, places, is_upright)
        across = at**2 * (3 - 2 * at)  # the curve is a Bézier curve, and about straight along the other direction
        left, top = (across, at) if is_upright else (at, across)
        place = {"x": f"{x + (to_x - x) * left:.1f}", "y": f"{y + (to_y - y) * top + (4 if is_upright else -4):.1f}"}
        yield tag("text", _cut(arrow.name), class_="name", **place)


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else f"…{text[1 - LETTERS :]}"
