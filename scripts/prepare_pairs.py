"""Build data/reviews/pairs/{train,validation,test}.jsonl: a positive sentence preferred to a negative one.

Run it from anywhere, after scripts/prepare_reviews.py, with the project's Python (`make setup` does both):

    .venv/bin/python scripts/prepare_pairs.py [--data DIR]

Each sentence of a split comes in one pair, with a sentence of the same source; `margin` is how far the human ratings of
the two are apart. The same bytes come out of every run.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DEFAULT_DATA = Path(__file__).resolve().parents[1] / "data" / "reviews"
SPLITS = ("test", "validation", "train")  # train last, since make takes it as the sign that all are there


def pairs_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Positive and negative sentences of each source in turn, as they stand; the sources mixed as they stand, too."""
    waiting: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    pairs = []
    for row in rows:
        other = "negative" if row["label"] == "positive" else "positive"
        if partners := waiting.get((row["source"], other)):
            partner = partners.pop(0)
            chosen, rejected = (row, partner) if other == "negative" else (partner, row)
            margin = round(chosen["rating"] - rejected["rating"], 4)
            pairs.append({"chosen": chosen["text"], "rejected": rejected["text"], "margin": margin})
        else:
            waiting.setdefault((row["source"], row["label"]), []).append(row)
    return pairs


def main() -> None:
    """Read, pair, write, and print a line of counts."""
    parser = argparse.ArgumentParser(description="Pair the rated sentences of each split.")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, metavar="DIR", help="default: data/reviews")
    data: Path = parser.parse_args().data
    (data / "pairs").mkdir(exist_ok=True)
    counts = []
    for split in SPLITS:
        rows = [json.loads(line) for line in (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        pairs = pairs_of(rows)
        aside = data / "pairs" / f".{split}.jsonl.tmp"
        aside.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
        aside.replace(data / "pairs" / f"{split}.jsonl")
        counts.append(f"{split} {len(pairs)}")
    print(f"pairs: {', '.join(counts)}")


if __name__ == "__main__":
    main()
