"""What became of equalities goes in; a table on a terminal, JSON and a page come out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from scaleup.reports import html
from scaleup.reports.terminal import span_text

Verdict = Literal["holds", "violated", "failed", "not due"]
"""Is `failed` where a run that an equality needs did not end well."""
HEADER = ("equality", "verdict", "deviation", "bound", "why")


@dataclass(frozen=True)
class Finding:
    """Says what became of one equality."""

    name: str
    what: str
    verdict: Verdict
    deviation: float | None
    bound: float
    is_least: bool
    """Tells that the bound is what has to be reached."""
    source: str
    """Tells where the bound comes from."""
    why: str = ""
    """Tells why it is not due, what failed, or what cannot be compared."""

    @property
    def cells(self) -> tuple[str, ...]:
        deviation = "" if self.deviation is None else f"{self.deviation:.1e}"
        bound = f"{'at least' if self.is_least else 'at most'} {self.bound:.1e}"
        if self.verdict == "not due":
            return f"{self.name}: {self.what}", self.verdict, "", "", self.why
        return f"{self.name}: {self.what}", self.verdict, deviation, bound, self.why or self.source


@dataclass(frozen=True)
class Verification:
    """Holds what became of all equalities of a config."""

    config: str
    stage: str
    twin: str
    """Describes the twins in words."""
    findings: Sequence[Finding]
    seconds: float
    is_whole: bool = True
    """Tells that no signal came before all were measured."""
    runs: str | None = None
    """Is the folder of the runs, where it was kept."""

    @property
    def is_well(self) -> bool:
        return self.is_whole and all(finding.verdict in ("holds", "not due") for finding in self.findings)

    @property
    def counts(self) -> str:
        """Returns how many there are of each verdict, in words, and how long it took."""
        counts = Counter(finding.verdict for finding in self.findings)
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        return f"{told}; {span_text(self.seconds)}"

    def plain(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        values = asdict(self)
        return {**values, "findings": list(values["findings"]), "is_well": self.is_well}


def show_verification(console: Console, found: Verification) -> None:
    """Prints the table of equalities, as tab-separated lines where there is no terminal."""
    console.print(f"{found.config} ({found.stage}), {found.twin}", soft_wrap=True)
    if console.is_terminal:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for title in HEADER:
            table.add_column(title, overflow="fold")
        for finding in found.findings:
            table.add_row(*finding.cells)
        console.print(table)
    else:
        print("\n".join("\t".join(cells) for cells in (HEADER, *(each.cells for each in found.findings))))
    console.print(found.counts, soft_wrap=True)
    if found.runs is not None:
        console.print(f"the runs: {found.runs}", soft_wrap=True)


def write_page(found: Verification, file: Path) -> None:
    """Writes the table as one HTML file."""
    title = f"verify {Path(found.config).name}"
    head = "all that is due holds" if found.is_well else "not all that is due was seen to hold"
    body = html.tag(
        "main",
        html.tag("h1", f"{title}: {head}"),
        html.tag("p", f"{found.stage}, {found.twin}; {found.counts}"),
        html.table(HEADER, [each.cells for each in found.findings], "Equalities", "texts"),
    )
    file.write_text(html.page(title, body), encoding="utf-8")
