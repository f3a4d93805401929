"""Build data/reviews/pairs/{train,validation,test}.jsonl: of two sentences the one that people rated higher is
preferred. And data/reviews/prompts/ beside it: the first four words of each film sentence, to be continued.

Run it from anywhere, after scripts/prepare_reviews.py, with the project's Python (`make setup` does both):

    .venv/bin/python scripts/prepare_pairs.py [--data DIR]

Each sentence of a split comes in one pair at most, with a sentence of the same source whose rating is at least
MIN_MARGIN away; `margin` is how far. Two in five pairs are of one label, so that a model learns how much better, and
not only which label: else its scores have no room above "positive" (benchmarks/reward.md). The same bytes come out of
every run.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DEFAULT_DATA = Path(__file__).resolve().parents[1] / "data" / "reviews"
PROMPT_WORDS = 4
MIN_MARGIN = 0.5  # nearer ratings are one rating: each is a mean over some twenty people who differ by about 1
SPLITS = ("test", "validation", "train")  # train last, since make takes it as the sign that all are there


def pairs_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each sentence with the first one of its source that still waits for a partner and is rated otherwise."""
    waiting: dict[str, list[Mapping[str, Any]]] = {}
    pairs = []
    for row in rows:
        others = waiting.setdefault(row["source"], [])
        partner = next((other for other in others if abs(other["rating"] - row["rating"]) >= MIN_MARGIN), None)
        if partner is None:
            others.append(row)
            continue
        others.remove(partner)
        rejected, chosen = sorted((row, partner), key=lambda each: each["rating"])
        margin = round(chosen["rating"] - rejected["rating"], 4)
        pairs.append({"chosen": chosen["text"], "rejected": rejected["text"], "margin": margin})
    return pairs


def prompts_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of sentences with as many words again; each opening once."""
    words = [row["text"].split() for row in rows if row["source"] == "movie"]
    openings = [" ".join(sentence[:PROMPT_WORDS]) for sentence in words if len(sentence) >= 2 * PROMPT_WORDS]
    return [{"prompt": opening} for opening in dict.fromkeys(openings)]


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(exist_ok=True)
    aside = file.with_name(f".{file.name}.tmp")
    aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    aside.replace(file)


def main() -> None:
    """Read, pair, write, and print a line of counts."""
    parser = argparse.ArgumentParser(description="Pair the rated sentences of each split.")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, metavar="DIR", help="default: data/reviews")
    data: Path = parser.parse_args().data
    counts = []
    for split in SPLITS:
        rows = [json.loads(line) for line in (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        pairs = pairs_of(rows)
        write(data / "prompts" / f"{split}.jsonl", prompts_of(rows))
        write(data / "pairs" / f"{split}.jsonl", pairs)
        counts.append(f"{split} {len(pairs)}")
    print(f"pairs: {', '.join(counts)}")


if __name__ == "__main__":
    main()
