"""Answers of models go in; a labeller judges them, on a page or in the terminal; labels and rows of preferences come
out, in one folder for all labellers."""

from __future__ import annotations

import getpass
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from scaleup.artifacts.files import write_text
from scaleup.errors import Problem, ScaleupError
from scaleup.labelling.agreement import (
    Agreement,
    Pairs,
    Standing,
    agreements,
    first_shown_share,
    majority_pairs,
    standings,
)
from scaleup.labelling.items import ItemSet, read_items
from scaleup.labelling.labels import LabelFile, check_name, read_labels
from scaleup.labelling.server import LabelServer
from scaleup.labelling.session import Session
from scaleup.labelling.terminal import label_here
from scaleup.records.parts import together
from scaleup.reports.terminal import heading, pairs_table

ITEMS, PAIRS = "items.json", "pairs.jsonl"


@dataclass(frozen=True)
class LabelOptions:
    """Holds how a labeller is asked."""

    labeller: str | None = None
    seed: int | None = None
    in_terminal: bool = False
    port: int = 0


def label(answers: Sequence[Path], output: Path | None, options: LabelOptions, console: Console) -> None:
    """Asks one labeller about answers that are not decided yet, and writes `labels-NAME.jsonl` as it goes and
    `pairs.jsonl` at the end. `answers` are files of generations, or the one folder of a labelling that goes on.

    Raises ScaleupError with all mistakes, before anything is written."""
    labeller = _user_name() if options.labeller is None else options.labeller
    goes_on = len(answers) == 1 and (answers[0] / ITEMS).is_file()
    folder = answers[0] if goes_on else output
    made = together(
        {
            "labeller": partial(check_name, labeller),
            "output": partial(_check_output, output, folder),
            "items": partial(_items_of, answers, folder, goes_on, options.seed),
        }
    )
    item_set: ItemSet = made["items"]
    assert folder is not None, "_check_output has looked at it"
    _begin(folder, item_set)
    with _alone(folder, labeller), LabelFile(folder, labeller, item_set.items) as file:
        try:
            _ask(Session(item_set, labeller, file), options, console)
        except KeyboardInterrupt:
            console.print()
        left = len(item_set.items) - len(file.decisions)
    if left:
        console.print(f"{left} left: scaleup label {folder} --labeller {labeller} goes on", soft_wrap=True)
    show_labels(folder, console)


def show_labels(folder: Path, console: Console, as_json: bool = False) -> None:
    """Writes `pairs.jsonl` from what all labellers decided so far, and prints how far they agree, which model they
    prefer and what was left out. Raises ScaleupError if there is no labelling, or for lines that are no decisions."""
    item_set = ItemSet.read(_labelling(folder))
    labels = read_labels(folder, item_set.items)
    pairs = majority_pairs(item_set, labels)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in pairs.rows)
    try:
        write_text(folder / PAIRS, "".join(lines))
    except OSError as error:
        raise ScaleupError.of(str(folder), f"cannot be written: {error.strerror}", "make room there") from None
    agreed, standing = agreements(item_set.items, labels), standings(item_set, labels)
    first = first_shown_share(item_set, labels)
    if as_json:
        print(
            json.dumps(
                {
                    "items": len(item_set.items),
                    "items_equal": item_set.num_equal,
                    "labellers": {name: len(decisions) for name, decisions in labels.items()},
                    "agreement": [asdict(each) for each in agreed],
                    "models": [asdict(each) | {"win_rate": each.win_rate} for each in standing],
                    "first_shown_share": first,
                    "pairs": len(pairs.rows),
                    "left_out": dict(pairs.left_out),
                    "file": str(folder / PAIRS),
                },
                indent=2,
                ensure_ascii=False,
            )
        )
        return
    _show_facts(console, folder, item_set, labels, pairs, first)
    _show_agreement(console, agreed)
    _show_standings(console, standing)


def _show_facts(
    console: Console, folder: Path, item_set: ItemSet, labels: dict[str, Any], pairs: Pairs, first: float | None
) -> None:
    heading(console, f"labels in {folder}")
    table = pairs_table()
    equal = f", {item_set.num_equal} more have equal answers" if item_set.num_equal else ""
    table.add_row("prompts", f"{len(item_set.items):,}{equal}")
    for name, decisions in labels.items():
        table.add_row(name, f"{len(decisions):,} decided")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(pairs.left_out.items()))
    table.add_row("pairs", f"{len(pairs.rows):,} in {folder / PAIRS}" + (f"; left out: {reasons}" if reasons else ""))
    if first is not None:
        table.add_row("first shown", f"{first:.0%} of the choices between two")
    console.print(table)


def _show_agreement(console: Console, agreed: Sequence[Agreement]) -> None:
    if not agreed:
        return
    table = Table("labellers", "kappa", "value", "95 % interval", "same", "items", box=None, padding=(0, 2, 0, 0))
    for each in agreed:
        interval = "" if each.interval is None else "{:.2f} to {:.2f}".format(*each.interval)
        table.add_row(
            ", ".join(each.labellers),
            "Cohen" if len(each.labellers) == 2 else "Fleiss",
            "undefined" if each.kappa is None else f"{each.kappa:.2f}",
            interval,
            "" if each.observed is None else f"{each.observed:.0%}",
            f"{each.num_items:,}",
        )
    console.print(table)


def _show_standings(console: Console, standing: Sequence[Standing]) -> None:
    table = Table("model", "won", "tied", "lost", "win rate", box=None, padding=(0, 2, 0, 0))
    for each in standing:
        rate = "" if each.win_rate is None else f"{each.win_rate:.0%}"
        table.add_row(each.model, f"{each.won:,}", f"{each.tied:,}", f"{each.lost:,}", rate)
    console.print(table)


def _ask(session: Session, options: LabelOptions, console: Console) -> None:
    """Holds the session until the labeller ends it; SIGTERM ends it as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.in_terminal:
            label_here(session, console)
            return
        with LabelServer(session, options.port) as server:
            print(f"label at {server.url}", flush=True)
            print("its page ends this, or Ctrl-C; nothing is lost", flush=True)
            server.serve_forever(0.1)
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_output(output: Path | None, folder: Path | None) -> None:
    if folder is None:
        raise ScaleupError.of("--output", "is not set", "name a folder for the labels, e.g. -o labels")
    if output is not None and output.absolute() != folder.absolute():
        raise ScaleupError.of("--output", f"is not {folder}, which holds the labelling", "leave it out")


def _items_of(answers: Sequence[Path], folder: Path | None, goes_on: bool, seed: int | None) -> ItemSet:
    """Returns what is judged: what was at the first start in this folder, or what these answers hold. Raises
    ScaleupError where these two are not the same."""
    known = ItemSet.read(folder / ITEMS) if folder is not None and (folder / ITEMS).is_file() else None
    if known is None:
        return read_items(answers, seed or 0)
    problems = []
    if seed not in (None, known.seed):
        what = f"is {seed}, but the labelling in {folder} began with {known.seed}"
        problems.append(Problem("--seed", what, "leave it out, or name another folder with -o"))
    if not goes_on and read_items(answers, known.seed) != known:
        remedy = "name another folder with -o, or the same answers in the same order"
        problems.append(Problem(str(folder), "holds a labelling of other answers", remedy))
    if problems:
        raise ScaleupError(problems)
    return known


def _begin(folder: Path, item_set: ItemSet) -> None:
    """Writes down what is judged, at the first start."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ITEMS).is_file():
            item_set.save(folder / ITEMS)
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise ScaleupError.of(str(folder), what, "name another folder with -o") from None


def _labelling(folder: Path) -> Path:
    if not (folder / ITEMS).is_file():
        remedy = "name the folder that scaleup label -o wrote to"
        raise ScaleupError.of(str(folder), f"holds no labelling: there is no {ITEMS}", remedy)
    return folder / ITEMS


@contextmanager
def _alone(folder: Path, labeller: str) -> Iterator[None]:
    """Keeps a labeller's file for one session at a time."""
    lock = FileLock(folder / f".labels-{labeller}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        what = f"{labeller!r} is labelling in {folder} already"
        raise ScaleupError([Problem("--labeller", what, "end that session, or take another name")]) from None
    except OSError as error:
        remedy = "see to the folder and its permissions"
        raise ScaleupError.of(str(folder), f"cannot be written: {error.strerror}", remedy) from None
    try:
        yield
    finally:
        lock.release()


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user whom the system has no name for
        return "labeller"
