"""Write the tables of keys in docs/coming-from/ from what `scaleup convert` does, so that they cannot lag behind.

python scripts/write_coming_from.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from scaleup.config.convert import TRAINERS
from scaleup.config.convert.draft import Trainer

FOLDER = Path(__file__).parent.parent / "docs" / "coming-from"
START, END = "<!-- keys -->\n", "<!-- end of keys -->\n"


def page(trainer: Trainer) -> str:
    """Returns the page of a trainer with its table of keys as it should be."""
    head, _, rest = (FOLDER / f"{trainer.page}.md").read_text(encoding="utf-8").partition(START)
    return head + START + _table(trainer) + END + rest.partition(END)[2]


def _table(trainer: Trainer) -> str:
    rules = trainer.rules.items()
    rows = ["", f"| {trainer.called} | scaleup |", "|---|---|"]
    rows += [f"| `{key}` | {', '.join(f'`{ours}`' for ours in rule.to)} |" for key, rule in rules if rule.to]
    rows += ["", f"| {trainer.called} | why it has no counterpart, or what to do instead |", "|---|---|"]
    rows += [f"| `{key}` | {rule.why} |" for key, rule in rules if rule.why and rule.matters]
    needless = ", ".join(f"`{key}`" for key, rule in rules if rule.why and not rule.matters)
    return "\n".join([*rows, "", f"Not needed here: {needless}.", "", ""])


def main() -> None:
    for trainer in TRAINERS.values():
        text = page(trainer)
        (FOLDER / f"{trainer.page}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
