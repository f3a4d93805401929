"""The doctor's findings go in; a table, or JSON, comes out."""

from __future__ import annotations

import io
import json
import socket
from collections import Counter
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scaleup.doctor.finding import Finding
from scaleup.doctor.nodes import Place

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def show(console: Console, findings: list[Finding], place: Place, as_json: bool) -> None:
    """Print the findings. With several nodes each line begins with the host's name: a scheduler mixes their lines."""
    host = socket.gethostname()
    if as_json:
        rows = [{"host": host, "node_rank": place.node_rank, **asdict(finding)} for finding in findings]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    prefix = f"{host}: " if place.num_nodes > 1 else ""
    if not prefix:
        console.print(_table(findings), _summary(findings), sep="\n", highlight=False)
        return
    width = max(40, console.width - len(prefix))
    page = Console(file=io.StringIO(), width=width, force_terminal=console.is_terminal)
    page.print(_table(findings), _summary(findings), sep="\n", highlight=False)
    assert isinstance(page.file, io.StringIO)
    print("".join(f"{prefix}{line}\n" for line in page.file.getvalue().splitlines()), end="", flush=True)


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(max_width=28, overflow="fold")
    table.add_column()
    table.add_column(overflow="fold")
    for finding in findings:
        style = STYLES[finding.level]
        what = Text(finding.what)
        if finding.remedy:
            what.append(f"\n-> {finding.remedy}", style="bold")
        table.add_row(Text(finding.name), Text(finding.level, style=style), what)
    return table


def _summary(findings: list[Finding]) -> str:
    counts = Counter(finding.level for finding in findings)
    return f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed"
