"""One labeller's session: items come out as they are to be shown, without the names of models; decisions go in."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any

from scaleup.labelling.items import Item, ItemSet
from scaleup.labelling.labels import KINDS, Decision, LabelFile, checked_ranks


def shown_order(item: Item, seed: int, labeller: str) -> tuple[int, ...]:
    """Returns the numbers of an item's answers in the order in which a labeller sees them: drawn for each prompt, so
    that no model always stands left, and for each labeller, so that what stands left is not the same for all."""
    order = list(range(len(item.answers)))
    Random(f"{seed} {labeller} {item.id}").shuffle(order)
    return tuple(order)


class Session:
    """Knows where a labeller is. Its methods may be called by several threads."""

    def __init__(self, item_set: ItemSet, labeller: str, file: LabelFile) -> None:
        self.items, self.labeller, self._file = item_set.items, labeller, file
        self._orders = [shown_order(item, item_set.seed, labeller) for item in self.items]
        self._lock = threading.Lock()
        self._shown: tuple[int, float] = (-1, 0.0)

    def view(self, at: int | None = None) -> dict[str, Any]:
        """Returns what is shown of the item at a place, by default of the first that is not decided: `at` (None where
        all are), `prompt` (turns of `role` and `text`), `answers` (texts), `decision` (`kind` and `ranks` in the order
        shown, or None), and how many of how many are decided."""
        with self._lock:
            return self._view(self._next_open(0) if at is None else min(max(at, 0), len(self.items) - 1))

    def decide(self, at: Any, kind: Any, ranks: Any) -> dict[str, Any]:
        """Writes down what was decided of the item at a place, `ranks` in the order shown. Returns the next view.

        Raises ValueError for what is no decision, and ScaleupError where it cannot be written."""
        with self._lock:
            if type(at) is not int or not 0 <= at < len(self.items):
                raise ValueError(f"there is no item at {at!r}")
            order = self._orders[at]
            checked = checked_ranks(kind, ranks, len(order))
            own = None if checked is None else tuple(checked[order.index(number)] for number in range(len(order)))
            extra: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="seconds")}
            if self._shown[0] == at:
                extra["seconds"] = round(time.monotonic() - self._shown[1], 1)
            self._file.append(Decision(self.items[at].id, kind, own, order), extra)
            return self._view(self._next_open(at))

    def undo(self) -> dict[str, Any]:
        """Takes the last decision back. Returns the view of its item; of the next one where there was none."""
        with self._lock:
            undone = self._file.undo()
            if undone is None:
                return self._view(self._next_open(0))
            return self._view(next(at for at, item in enumerate(self.items) if item.id == undone))

    def _next_open(self, at: int) -> int | None:
        """Returns the first place from `at` on that is not decided, going round."""
        decided = self._file.decisions
        around = [*range(at, len(self.items)), *range(at)]
        return next((place for place in around if self.items[place].id not in decided), None)

    def _view(self, at: int | None) -> dict[str, Any]:
        decided = self._file.decisions
        view: dict[str, Any] = {"at": at, "total": len(self.items), "decided": len(decided), "labeller": self.labeller}
        counts = Counter(decision.kind for decision in decided.values())
        view["counts"] = {kind: counts[kind] for kind in KINDS if counts[kind]}
        if at is None:
            return view
        if self._shown[0] != at:
            self._shown = (at, time.monotonic())
        item, order = self.items[at], self._orders[at]
        decision = decided.get(item.id)
        return view | {
            "prompt": turns_of(item),
            "answers": [item.answers[number].text for number in order],
            "decision": None if decision is None else {"kind": decision.kind, "ranks": _ranks_shown(decision, order)},
        }


def _ranks_shown(decision: Decision, order: Sequence[int]) -> list[int] | None:
    return None if decision.ranks is None else [decision.ranks[number] for number in order]


def turns_of(item: Item) -> list[dict[str, str]]:
    """Returns a prompt as turns to be shown; a text is one turn without a role."""
    if isinstance(item.prompt, str):
        return [{"role": "", "text": item.prompt}]
    turns = []
    for message in item.prompt:
        content = message.get("content", message.get("value"))
        text = content if isinstance(content, str) else ""
        if isinstance(content, list):
            text = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
        if calls := message.get("tool_calls"):
            text = f"{text}\n{json.dumps(calls, ensure_ascii=False)}".lstrip()
        turns.append({"role": str(message.get("role", message.get("from", ""))), "text": text})
    return turns
