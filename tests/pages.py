"""Read a report as text, and look at it in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as BrowserPage

SIZES = {
    "phone": (390, 844),
    "small": (400, 800),
    "tablet": (820, 1180),
    "laptop": (1280, 800),
    "desktop": (1440, 900),
}
SCHEMES = ("light", "dark")


class Page(HTMLParser):
    """Holds the cells of each table row, each tag with its attributes, and the text outside of style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self._inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self._inside):
            self.rows[-1][-1] += data
        if not {"style", "script"} & set(self._inside):
            self.text += f" {data}"

    def row(self, name: str) -> list[str]:
        """The cells behind a row's name."""
        return next(cells[1:] for cells in self.rows if cells and cells[0] == name)


@dataclass
class Visit:
    """A page that a browser shows, what it said on its console, and what it asked for."""

    page: BrowserPage
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        """What axe finds wrong with the page for people who see, hear or move otherwise."""
        from axe_playwright_python.sync_playwright import Axe

        return [
            f"{each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes'][:3]]}"
            for each in Axe().run(self.page).response["violations"]
        ]


@contextmanager
def visit(browser: Browser, address: str, size: str = "desktop", scheme: str = "light") -> Iterator[Visit]:
    """A page in a window of its own."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    try:
        seen = Visit(context.new_page())
        seen.page.on("console", lambda message: seen.said.append(message.text))
        seen.page.on("pageerror", lambda error: seen.said.append(str(error)))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.goto(address)
        yield seen
    finally:
        context.close()
