"""Texts go in; HTML comes out, in which every text is escaped: what a model wrote, or a run is called, is never markup.

A page is one file that loads nothing: its Content-Security-Policy forbids every request."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeAlias

import scaleup
from scaleup.errors import without_passwords

DOCTYPE = "<!DOCTYPE html>"
VOID = ("meta", "link", "br")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Matches what no HTML file may hold, and half a character that JSON lets through."""
ICON = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'%3E%3Ccircle cx='8' cy='8' r='7'/%3E%3C/svg%3E"


class Html(str):
    """Holds markup. Any other text is escaped where it becomes a part of some."""

    __slots__ = ()


Part: TypeAlias = "str | Iterable[Part] | None"
"""Is what an element holds: text, markup, several of both, or nothing."""


@dataclass(frozen=True)
class Limits:
    """Bounds what a page shows, so that it stays small however long a run is."""

    points: int = 300
    """Counts the points of a line."""
    rows: int = 200
    """Counts the rows of a table."""
    samples: int = 12
    """Counts the samples of a table."""
    letters: int = 1200
    """Counts the letters of one text of a sample."""
    charts: int = 40
    """Counts the charts of one run."""
    spans: int = 600
    """Counts the spans of time of a group."""

    def halved(self) -> Limits:
        return Limits(*(max(2, value // 2) for value in vars(self).values()))


def join(*parts: Part) -> Html:
    """Returns parts behind one another, with each text escaped."""
    return Html("".join(_flat(parts)))


def _flat(part: Part) -> Iterable[str]:
    if isinstance(part, Html):
        yield part
    elif isinstance(part, str):
        yield html.escape(CONTROL.sub("\ufffd", part))
    elif part is not None:
        for each in part:
            yield from _flat(each)


def tag(name: str, /, *parts: Part, **attributes: Any) -> Html:
    """Returns an element. Of attributes a last `_` is left out, others become `-`; None and False stand for none."""
    told = []
    for key, value in attributes.items():
        if value is not None and value is not False:
            shown = key.rstrip("_").replace("_", "-")
            told.append(f" {shown}" if value is True else f' {shown}="{join(str(value))}"')
    opened = f"<{name}{''.join(told)}>"
    return Html(opened if name in VOID else f"{opened}{join(*parts)}</{name}>")


def table(
    header: Sequence[Part],
    rows: Sequence[Sequence[Part]],
    caption: str,
    kind: str = "figures",
    limit: int = Limits.rows,
) -> Html:
    """Returns a table that scrolls by itself where it is too wide. `kind` is a class: `figures`, `facts` (names and
    what they stand for), or `texts`."""
    head = tag("tr", (tag("th", cell, scope="col") if cell else tag("td") for cell in header)) if header else None
    body = (
        tag("tr", tag("th", row[0], scope="row"), (tag("td", cell) for cell in row[1:])) for row in rows[:limit]
    )  # fmt: skip
    shown = tag("table", tag("caption", caption), tag("thead", head) if head else None, tag("tbody", body), class_=kind)
    more = f"{limit:,} of {len(rows):,} rows" if len(rows) > limit else None
    return join(
        tag("div", shown, class_="scroll", tabindex="0", role="group", aria_label=caption),
        tag("p", more, class_="note") if more else None,
    )


def facts(rows: Iterable[tuple[str, str]], caption: str) -> Html:
    """Returns a table of names and what they stand for, without those that stand for nothing, and without the passwords
    within addresses."""
    return table((), [(key, without_passwords(value)) for key, value in rows if value], caption, "facts")


def section(title: str, *parts: Part, level: int = 2, id_: str | None = None) -> Html:
    """Returns a section with its heading; nothing where it holds nothing."""
    body = join(*parts)
    return tag("section", tag(f"h{level}", title), body, id=id_) if body else Html()


def details(title: str, *parts: Part, id_: str) -> Html:
    """Returns what opens with a click; nothing where it holds nothing."""
    body = join(*parts)
    return tag("details", tag("summary", title), body, id=id_) if body else Html()


def shortened(text: str, letters: int) -> str:
    """Returns a text, or its beginning with the number of letters that are left out."""
    return text if len(text) <= letters else f"{text[:letters]} … ({len(text) - letters:,} more letters)"


def page(title: str, body: Part, script: str = "") -> str:
    """Returns a whole page. `script` runs in it, and may ask the place that the page is from, and no other."""
    style = files("scaleup.reports").joinpath("html.css").read_text(encoding="utf-8")
    rules = [
        "default-src 'none'",
        f"style-src {_hash(style)}",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    rules += [f"script-src {_hash(script)}", "connect-src 'self'"] if script else []
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content="; ".join(rules)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"scaleup {scaleup.__version__}"),
        tag("link", rel="icon", href=ICON),
        tag("title", title),
        tag("style", Html(style)),
        tag("script", Html(script)) if script else None,
    )
    return f'{DOCTYPE}\n<html lang="en">\n<head>{head}</head>\n<body>{join(body)}</body>\n</html>\n'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
