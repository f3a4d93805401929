"""Each sentence comes in one pair, with one of its own source, and the better rated is chosen."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "prepare_pairs.py"


def test_pairs() -> None:
    spec = importlib.util.spec_from_file_location("prepare_pairs", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    ratings = {"a": 2.0, "b": -1.0, "c": 1.7, "d": 3.0, "e": 1.0, "f": -2.0}
    sources = {"a": "movie", "b": "product", "c": "movie", "d": "product", "e": "movie", "f": "movie"}
    rows = [{"text": text, "rating": rating, "source": sources[text]} for text, rating in ratings.items()]
    assert script.pairs_of(rows) == [
        {"chosen": "d", "rejected": "b", "margin": 4.0},
        {"chosen": "a", "rejected": "e", "margin": 1.0},  # c is too near a, and waits on
        {"chosen": "c", "rejected": "f", "margin": 3.7},
    ]
