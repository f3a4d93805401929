"""A session goes in; it is held on this terminal, by the keys of the page."""

from __future__ import annotations

import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from scaleup.labelling.labels import CHOICE, NEITHER, RANKING, TIE
from scaleup.labelling.session import Session
from scaleup.reports.terminal import plain

ARROWS = {b"\x1b[C": "next", b"\x1b[D": "back", b"\x1bOC": "next", b"\x1bOD": "back"}
DIGITS = tuple("123456789")
ESCAPE = "\x1b"
HELP = "1-9 choose   r rank   t tie   n neither   u undo   arrows move   q finish"
RANK_HELP = "best first: 1-9 next   = as good as the last   enter the others are equal   escape leave"
WIDTH_OF_ONE = 40
"""Is the width in columns below which answers stand one below the other."""


@dataclass(frozen=True)
class Ranking:
    """Is a ranking that is under way, the best first."""

    given: tuple[int, ...]
    """Has each answer's rank in the order shown; 0 where it has none yet."""
    is_equal: bool = False
    """Tells whether the next answer is as good as the last one."""

    def after(self, key: str) -> Ranking:
        """Returns the ranking after a key; the same one for a key that means nothing."""
        level = max(self.given)
        if key == "=":
            return replace(self, is_equal=level > 0)
        if key == "enter" and level:
            return Ranking(tuple(rank or level + 1 for rank in self.given))
        if key not in DIGITS[: len(self.given)] or self.given[int(key) - 1]:
            return self
        given = list(self.given)
        given[int(key) - 1] = level if self.is_equal else level + 1
        return Ranking(tuple(given))

    @property
    def is_whole(self) -> bool:
        return all(self.given)


def label_here(session: Session, console: Console) -> None:
    """Asks about one item after another until the user ends it, or stdin does. Raises ScaleupError where a decision
    cannot be written."""
    view, ranking = session.view(), None
    with _single_keys():
        _show(console, view, ranking)
        for key in _keys():
            if key == "q":
                return
            view, ranking = _after(session, view, ranking, key)
            _show(console, view, ranking)


def _after(
    session: Session, view: dict[str, Any], ranking: Ranking | None, key: str
) -> tuple[dict[str, Any], Ranking | None]:
    """Returns what is shown after a key: the view, and the ranking that is under way."""
    at = view["at"]
    if key == "u" and ranking is None:
        return session.undo(), None
    if key in ("next", "back"):
        here = (view["total"] if key == "back" else -1) if at is None else at
        return session.view(here + (1 if key == "next" else -1)), None
    if at is None:
        return view, None
    count = len(view["answers"])
    if ranking is not None:
        if key == ESCAPE:
            return view, None
        ranking = ranking.after(key)
        if not ranking.is_whole:
            return view, ranking
        return session.decide(at, TIE if max(ranking.given) == 1 else RANKING, ranking.given), None
    if key == "r":
        return view, Ranking((0,) * count)
    if key == "t":
        return session.decide(at, TIE, [1] * count), None
    if key == "n":
        return session.decide(at, NEITHER, None), None
    if key in DIGITS[:count]:
        ranks = [2] * count
        ranks[int(key) - 1] = 1
        return session.decide(at, CHOICE, ranks), None
    return view, None


def _show(console: Console, view: dict[str, Any], ranking: Ranking | None) -> None:
    console.clear()
    console.rule(Text(f"{view['decided']} of {view['total']} decided by {view['labeller']}"))
    if view["at"] is None:
        console.print("all are decided: u undoes, arrows go back, q finishes")
        return
    for turn in view["prompt"]:
        console.print(Text(plain(f"{turn['role']}: {turn['text']}" if turn["role"] else turn["text"])))
    ranks = ranking.given if ranking else (view["decision"] or {}).get("ranks") or [0] * len(view["answers"])
    boxes = [
        (f"[{number}]" + (f"  rank {rank}" if rank else ""), Text(plain(text or "(nothing)")))
        for number, (text, rank) in enumerate(zip(view["answers"], ranks, strict=True), 1)
    ]
    console.print()
    if console.width >= WIDTH_OF_ONE * len(boxes):
        table = Table(show_lines=True, expand=True)
        for head, _ in boxes:
            table.add_column(Text(head), ratio=1, overflow="fold")
        table.add_row(*(text for _, text in boxes))
        console.print(table)
    else:
        for head, text in boxes:
            console.print(Text(head))
            console.print(Padding(text, (0, 0, 1, 2)))
    decided = view["decision"]["kind"] if view["decision"] else ""
    console.print(Text(f"{f'decided: {decided}   ' if decided else ''}{RANK_HELP if ranking else HELP}"))


@contextmanager
def _single_keys() -> Iterator[None]:
    """Makes the terminal hand over each key at once, and as before afterwards."""
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _keys() -> Iterator[str]:
    """Yields keys until stdin ends: letters, `next` and `back` for arrows, `enter`, and the escape character."""
    while read := os.read(sys.stdin.fileno(), 1 << 12):
        while read:
            arrow = next((sequence for sequence in ARROWS if read.startswith(sequence)), None)
            if arrow is not None:
                yield ARROWS[arrow]
                read = read[len(arrow) :]
                continue
            letter, read = chr(read[0]), read[1:]
            yield "enter" if letter in "\r\n" else letter
