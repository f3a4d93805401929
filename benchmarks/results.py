"""What `bench.py` has measured: kept as JSON, compared with what was measured before, and shown as a page.

A measure of a row holds the values of both sides, one of each a repeat, and the ratio of each pair. Its kind says which
way the ratio is made, and what is better."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Record = dict[str, Any]
"""A row as results.json has it: title, date, command, conditions, and measures or why there are none."""


@dataclass(frozen=True)
class Kind:
    """Says how a ratio is read."""

    formula: str
    better: Literal["more", "less", "nearer to 1"]
    margin: float
    """Is the share of a recorded bound that a new spread may stay beyond it, and is not called other."""

    def ratio(self, ours: float, theirs: float) -> float:
        return theirs / ours if self.formula == "theirs / ours" else ours / theirs

    def is_better(self, new: float, old: float) -> bool:
        if self.better == "nearer to 1":
            return abs(new - 1) < abs(old - 1)
        return new > old if self.better == "more" else new < old


KINDS = {
    "seconds": Kind("theirs / ours", "more", 0.10),
    "rate": Kind("ours / theirs", "more", 0.10),
    "memory": Kind("ours / theirs", "less", 0.03),
    "plan": Kind("ours / theirs", "nearer to 1", 0.02),
    "count": Kind("ours / theirs", "less", 0.05),
}


def measure(name: str, kind: str, unit: str, pairs: Sequence[tuple[float, float]]) -> Record:
    """Returns a measure of a row, from ours and theirs of each repeat."""
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    ratios = [KINDS[kind].ratio(one, other) for one, other in pairs]
    return {"name": name, "kind": kind, "unit": unit, "ours": ours, "theirs": theirs, "ratios": ratios}


def read(file: Path) -> dict[str, Record]:
    """Returns each row by its comparison's name."""
    known: dict[str, Record] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return known


def write(file: Path, text: str) -> None:
    """Writes aside and renames, so that what is there is always whole."""
    aside = file.with_name(f"{file.name}.part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(file)


def check(old: Record, new: Record) -> list[tuple[str, bool]]:
    """Returns a sentence for each measure of a recorded row, and whether it is as it was. Ratios are compared, and our
    bytes; never seconds."""
    if "skipped" in old:
        return [("was not measured before, there is nothing to compare with", True)]
    if "skipped" in new:
        return [(f"is gone: {new['skipped']}", False)]
    found, measured = [], {each["name"]: each for each in new["measures"]}
    for was in old["measures"]:
        name, now = was["name"], measured.get(was["name"], {"skipped": "it is not measured any more"})
        if "skipped" in was or "skipped" in now:
            gone = "skipped" not in was
            found.append((f"{name}: {'is gone: ' if gone else ''}{now.get('skipped', 'is new')}", not gone))
            continue
        kind = KINDS[was["kind"]]
        compared = [("ratio", was["ratios"], now["ratios"])]
        if was["kind"] == "memory":
            compared.append((f"our {was['unit']}", was["ours"], now["ours"]))
        found += [_verdict(f"{name}: {what}", kind, before, after) for what, before, after in compared]
    return found


def _verdict(what: str, kind: Kind, old: Sequence[float], new: Sequence[float]) -> tuple[str, bool]:
    said = f"{what} {spread(new)}, recorded {spread(old)}"
    if min(new) <= max(old) * (1 + kind.margin) and max(new) >= min(old) * (1 - kind.margin):
        return f"{said}: within the spread", True
    is_better = kind.is_better(statistics.median(new), statistics.median(old))
    return f"{said}: {'better' if is_better else 'WORSE'}, by more than {kind.margin:.0%}", False


def spread(values: Sequence[float]) -> str:
    middle, least, most = (_short(each) for each in (statistics.median(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least} to {most})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def render(rows: dict[str, Record], names: Sequence[str]) -> str:
    """Returns the page; `names`: of all comparisons, also those that have no row yet."""
    lines = [_HEAD, ""]
    lines += [f"- *{name}*: {each.formula}, {each.better}: {each.margin:.0%}" for name, each in KINDS.items()]
    lines += ["", "| comparison | what | theirs | ours | ratio: median (least to most) | is | repeats | measured |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        link, day = f"[{name}](#{name})", row["date"][:10]
        if "skipped" in row:
            lines.append(f"| {link} | not measured: {row['skipped']} | | | | | | {day} |")
        lines += [f"| {link} | {_cells(each)} | {day} |" for each in row.get("measures", ())]
    lines += [f"| {name} | not measured so far | | | | | | |" for name in names if name not in rows]
    for name, row in rows.items():
        lines += [
            "",
            f"## {name}",
            "",
            row["about"],
            "",
            f"    .venv/bin/python {row['command']}",
            "",
            _conditions(row),
        ]
    return "\n".join(lines) + "\n"


def _cells(each: Record) -> str:
    if "skipped" in each:
        return f"{each['name']}: not measured: {each['skipped']} | | | | |"
    unit, scale = ("MB", 1e6) if each["unit"] == "bytes" else (each["unit"], 1)
    theirs, ours = (_short(statistics.median(each[side]) / scale) for side in ("theirs", "ours"))
    ratio, kind = spread(each["ratios"]), KINDS[each["kind"]]
    return f"{each['name']}, {unit} | {theirs} | {ours} | **{ratio}** | {kind.formula} | {len(each['ratios'])}"


def _conditions(row: Record) -> str:
    at = row["conditions"]
    where = f"{row['date']}, {at['machine']}, {at['cores']} cores, scaleup {at['commit']}"
    versions = ", ".join(f"{name} {version}" for name, version in at["versions"].items())
    took = f" It took {row['seconds'] / 60:.1f} minutes; other processes used {at['others']:.2f} cores meanwhile."
    return f"{where}, {versions}.{'' if 'skipped' in row else took}"


_HEAD = """# All comparisons side by side

    make bench

`benchmarks/bench.py` made this page, do not edit it; there stands what is run, and the other pages here are of the same
scripts at larger sizes. `make bench ONLY="sft dpo"` measures these rows again and keeps the others, with their dates.
The sides take turns (theirs, ours, theirs, ours), so that what else the machine does meets both. A ratio is that of two
neighbours, its spread that of the repeats. Read ratios and memory, not seconds: these are of one small machine. Where
other processes used its cores meanwhile, which stands under each comparison, a spread is wide and its median says
little.

`make bench-check` measures again and ends with 1 where a ratio, or the memory that we take, has left the recorded
spread by more than a margin. How the ratio of each kind is made, which is better, and its margin:"""
