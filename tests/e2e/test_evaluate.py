"""`stage: evaluate` by every kind of metric: on one process and two, beside a baseline; killed and continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaleup.evaluation import answer_metrics
from tests.cli import logs, scaleup, write_config

ROWS = [
    {"question": f"{word} film?", "answer": answer}
    for word in ("a", "the", "no", "my", "one more", "that")
    for answer in ("good", "bad", "good enough")
]
FUNCTION = """
import pathlib

def vowels(predictions, **_):
    with pathlib.Path(__file__).with_name("calls").open("a") as calls:
        calls.write("call ")
    return {"vowels": [sum(letter in "aeiou" for letter in text) for text in predictions]}
"""
CONFIG: dict[str, Any] = {
    "stage": "evaluate",
    "name": "one",
    "model": {"path": "builtin:tiny-llama"},
    "baseline": {"path": "builtin:tiny-gpt2"},
    "data": {"test": "rows.jsonl", "prompt": "{question}", "completion": " {answer}", "max_length": 64},
    "evaluation": {
        "metrics": [
            *("perplexity", "accuracy", "f1", "likelihood_accuracy", "likelihood_f1", "exact_match", "squad", "rouge"),
            *("bleu", "chrf", "meteor", "toxicity", "reward", "kl", "length", "distinct"),
            f"evaluate:{answer_metrics.__file__}#squad",
            "own.py:vowels",
        ],
        "labels": ["good", "bad"],
        "toxicity_model": {"path": "builtin:tiny-hate-classifier"},
        "toxic_label": "hate",
        "reward_model": {"path": "builtin:tiny-bert-classifier"},
        "reward_label": "positive",
        "reference": {"path": "builtin:tiny-llama"},
        "batch_size": 4,
        "bootstrap_samples": 100,
    },
    "generation": {"max_new_tokens": 5, "temperature": 1.0},
}
FIGURES = {
    *("loss", "perplexity", "accuracy", "f1_macro", "f1_micro", "likelihood_accuracy", "likelihood_f1_macro"),
    *("likelihood_f1_micro", "exact_match", "squad_exact_match", "squad_f1", "rouge1", "rouge2", "rougeL", "rougeLsum"),
    *("bleu", "chrf", "meteor", "toxicity", "toxicity_std", "reward", "reward_std", "kl", "kl_per_token"),
    *("length_words", "length_characters", "vowels"),
}


def evaluated(place: Path, name: str, *overrides: str) -> Path:
    result = scaleup("evaluate", write_config({**CONFIG, "name": name}, place), *overrides, cwd=place)
    assert result.code == 0, f"{result.stderr}\n{logs(place / 'runs' / name)}"
    return place / "runs" / name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "own.py").write_text(FUNCTION)
    return folder


@pytest.fixture(scope="module")
def one(place: Path) -> Path:
    return evaluated(place, "one")


def results(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return json.loads((folder / "metrics.json").read_text()), [json.loads(line) for line in lines]


def test_every_figure_has_an_interval_around_it(one: Path) -> None:
    found, rows = results(one)
    assert list(found) == ["baseline", "model"]
    for column, figures in found.items():
        assert figures["rows"] == len(ROWS) == len(rows)
        assert figures.keys() >= FIGURES, column
        for name in FIGURES:
            low, high = figures[f"{name}_interval"]
            assert low <= figures[name] <= high or name in ("bleu", "f1_macro"), (column, name)
    assert found["model"]["kl"] == 0.0 < found["baseline"]["kl"], "the reference is the model itself"


def test_every_row_has_its_number_and_scores(one: Path) -> None:
    found, rows = results(one)
    assert [row["id"] for row in rows] == list(range(len(ROWS)))
    assert [(row["prompt"], row["reference"]) for row in rows] == [(row["question"], row["answer"]) for row in ROWS]
    for column in ("baseline", "model"):
        for name in ("accuracy", "likelihood_accuracy", "rouge1", "toxicity", "reward", "kl", "vowels", "squad_f1"):
            mean = sum(row["scores"][column][name] for row in rows) / len(rows)
            assert mean == pytest.approx(found[column][name]), name


@pytest.mark.slow
def test_two_processes_measure_the_same(one: Path, place: Path) -> None:
    found, rows = results(one)
    (place / "calls").unlink()
    again, other = results(evaluated(place, "two", "parallel.num_processes=2"))
    assert (place / "calls").read_text().split() == ["call"] * 2, "once a column, whatever the number of processes"
    assert [{**row, "scores": None} for row in rows] == [{**row, "scores": None} for row in other]
    for column, figures in found.items():
        for name, value in figures.items():
            if isinstance(value, str):
                assert again[column][name] == value
                continue
            assert again[column][name] == pytest.approx(value, rel=1e-5, abs=1e-6), (column, name)


@pytest.mark.slow
def test_an_evaluation_that_failed_goes_on(one: Path, place: Path) -> None:
    """On two processes, of which one has found what is wrong. Its answers are there, and nobody writes them again."""
    found, rows = results(one)
    config = write_config({**CONFIG, "name": "on", "parallel": {"num_processes": 2}}, place)
    (place / "own.py").write_text(FUNCTION.replace("return", "raise ValueError('not yet') #"))
    failed = scaleup("run", config, cwd=place)
    assert failed.code == 2 and "own.py:vowels raised ValueError: not yet" in failed.stderr
    [file] = (place / "runs/on/.parts").glob("*/0.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(number for number, _ in lines) == list(range(0, len(ROWS), 2))
    lines[lines.index([0, [rows[0]["baseline"]]])][1][0] = "another answer"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "own.py").write_text(FUNCTION)
    went_on = scaleup("run", config, "--resume", cwd=place)
    assert went_on.code == 0, went_on.stderr
    again, other = results(place / "runs/on")
    assert other[0]["baseline"] == "another answer", "it is read, not written anew"
    answers = [[(row["baseline"], row["model"]) for row in each[1:]] for each in (rows, other)]
    assert answers[0] == answers[1] and again["model"].keys() == found["model"].keys()
    assert not (place / "runs/on/.parts").exists()
