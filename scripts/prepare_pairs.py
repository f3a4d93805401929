"""Build data/reviews/pairs/{train,validation,test}.jsonl: a positive sentence preferred to a negative one. And
data/reviews/prompts/ beside it: the first four words of each film sentence, to be continued.

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
PROMPT_WORDS = 4
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
