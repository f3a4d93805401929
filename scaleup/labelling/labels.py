"""A labeller's decisions go into a file, a line each, which is on the disk before the next item is shown; and come out
of it, also after a crash in the middle of a line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from scaleup.errors import Problem, ScaleupError
from scaleup.labelling.items import Item

CHOICE, RANKING, TIE, NEITHER = "choice", "ranking", "tie", "neither"
KINDS = (CHOICE, RANKING, TIE, NEITHER)
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
PREFIX = "labels-"


@dataclass(frozen=True)
class Decision:
    """Holds what a labeller said of one item."""

    id: int
    kind: str
    ranks: tuple[int, ...] | None
    """Has each answer's rank in the order of the item, 1 the best, the same for a tie; None where neither is good.
    A choice has 1 for its answer and 2 for all others, between which nothing is said."""
    shown: tuple[int, ...]
    """Has the numbers of the answers in the order in which they were shown."""

    @property
    def best(self) -> int | None:
        """Returns the number of the answer that stands alone at the top; None where there is none."""
        if self.ranks is None or self.ranks.count(1) != 1:
            return None
        return self.ranks.index(1)

    def prefers(self, one: int, other: int) -> int | None:
        """Returns 1 if `one` is the better of two answers, -1 if `other` is, 0 if they are tied or neither is good, and
        None where nothing is said of the two."""
        if self.ranks is None:
            return 0
        difference = self.ranks[other] - self.ranks[one]
        if difference == 0 and self.kind == CHOICE:
            return None
        return (difference > 0) - (difference < 0)


def checked_ranks(kind: Any, ranks: Any, num_answers: int) -> tuple[int, ...] | None:
    """Returns the ranks of a decision. Raises ValueError, which says why, where they do not belong to its kind."""
    if kind not in KINDS:
        raise ValueError(f"kind is none of {', '.join(KINDS)}")
    if kind == NEITHER:
        if ranks is not None:
            raise ValueError("neither has no ranks")
        return None
    if not isinstance(ranks, (list, tuple)) or any(type(rank) is not int for rank in ranks):
        raise ValueError("ranks is no list of whole numbers")
    if len(ranks) != num_answers:
        raise ValueError(f"ranks has {len(ranks)} numbers for {num_answers} answers")
    levels = set(ranks)
    if levels != set(range(1, len(levels) + 1)) or (kind == TIE) != (len(levels) == 1):
        raise ValueError("ranks do not count from 1 without a gap, or are those of another kind")
    if kind == CHOICE and (len(levels) != 2 or list(ranks).count(1) != 1):
        raise ValueError("a choice has one answer of rank 1, and all others of rank 2")
    return tuple(ranks)


class LabelFile:
    """Stands for `labels-NAME.jsonl`. Decisions are appended; the last one of an item counts, and an undo takes away
    the last one of all."""

    def __init__(self, folder: Path, labeller: str, items: Sequence[Item]) -> None:
        """Reads what is there; a last line that was cut off is taken away. Raises ScaleupError with all lines that are
        no decisions."""
        self.path = folder / f"{PREFIX}{labeller}.jsonl"
        self._history = _read(self.path, {item.id: item for item in items})
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._size = _mended(self._descriptor)
        except OSError as error:
            remedy = "see to the folder and its permissions"
            raise ScaleupError.of(str(self.path), f"cannot be written: {error.strerror}", remedy) from None

    @property
    def decisions(self) -> dict[int, Decision]:
        """Returns what counts now, by the item's id."""
        return {decision.id: decision for decision in self._history}

    def append(self, decision: Decision, extra: Mapping[str, Any]) -> None:
        """Writes a decision down, with `extra` beside it. Raises ScaleupError where the disk does not take it, and the
        file is as before then."""
        ranks = None if decision.ranks is None else list(decision.ranks)
        line = {"id": decision.id, "kind": decision.kind, "ranks": ranks, "shown": list(decision.shown), **extra}
        self._write(line)
        self._history.append(decision)

    def undo(self) -> int | None:
        """Takes the last decision back. Returns its item's id; None where there is none."""
        if not self._history:
            return None
        self._write({"undo": self._history[-1].id})
        return self._history.pop().id

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        data = (json.dumps(line) + "\n").encode()
        try:
            written = os.write(self._descriptor, data)
            if written < len(data):
                raise OSError(28, "No space left on device")
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise ScaleupError.of(str(self.path), f"cannot be written: {error.strerror}", "make room there") from None
        self._size += len(data)


def read_labels(folder: Path, items: Sequence[Item]) -> dict[str, dict[int, Decision]]:
    """Returns what each labeller of a folder decided, by the item's id. Raises ScaleupError with all lines of all files
    that are no decisions."""
    known, problems = {item.id: item for item in items}, []
    labels: dict[str, dict[int, Decision]] = {}
    for file in sorted(folder.glob(f"{PREFIX}*.jsonl")):
        try:
            history = _read(file, known)
        except ScaleupError as error:
            problems += error.problems
            continue
        if history:
            labels[file.stem.removeprefix(PREFIX)] = {decision.id: decision for decision in history}
    if problems:
        raise ScaleupError(problems)
    return labels


def _mended(descriptor: int) -> int:
    """Cuts a last line without an end off a file, as a crash leaves it. Returns how many bytes it has then."""
    size = os.fstat(descriptor).st_size
    whole = os.pread(descriptor, size, 0).rfind(b"\n") + 1
    os.ftruncate(descriptor, whole)
    os.lseek(descriptor, whole, os.SEEK_SET)
    return whole


def _read(file: Path, items: Mapping[int, Item]) -> list[Decision]:
    """Returns the decisions that were not taken back, in the order in which they were made."""
    try:
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    except OSError as error:
        raise ScaleupError.of(str(file), f"cannot be read: {error.strerror}", "see to its permissions") from None
    history: list[Decision] = []
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            _replay(line, items, history)
        except (ValueError, KeyError, TypeError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            problems.append(Problem(f"{file}:{number}", f"is no decision: {why}", "mend or remove the line"))
    if problems:
        raise ScaleupError(problems)
    return history


def _replay(line: bytes, items: Mapping[int, Item], history: list[Decision]) -> None:
    raw = json.loads(line)
    if not isinstance(raw, dict):
        raise ValueError("it is no object")
    if "undo" in raw:
        if not history or history[-1].id != raw["undo"]:
            raise ValueError("the last decision before it is not of that item")
        history.pop()
        return
    item = items.get(raw["id"])
    if item is None:
        raise ValueError(f"there is no item {raw['id']!r}")
    shown = tuple(raw["shown"])
    if sorted(shown) != list(range(len(item.answers))):
        raise ValueError("shown is no order of the item's answers")
    history.append(Decision(item.id, raw["kind"], checked_ranks(raw["kind"], raw["ranks"], len(shown)), shown))


def check_name(labeller: str) -> None:
    """Raises ScaleupError for a labeller's name that cannot be part of a file's."""
    if not NAME.fullmatch(labeller):
        remedy = "take letters, digits, dots, dashes and underscores, at most 64"
        raise ScaleupError.of("--labeller", f"{labeller!r} is no name of a file", remedy)
