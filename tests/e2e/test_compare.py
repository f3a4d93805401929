"""`scaleup compare`: the course's table from one config, and evaluations that may not be compared."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleup.errors import ScaleupError
from scaleup.reports.evaluations import read_columns
from tests.cli import differing, logs, scaleup, write_config
from tests.forked_runs import train

pytestmark = pytest.mark.slow
SFT: dict[str, Any] = {
    "stage": "sft",
    "name": "full",
    "model": {"path": "builtin:tiny-llama"},
    "data": {
        "train": "rows.jsonl",
        "test": "held.jsonl",
        "prompt": "{word}:",
        "completion": " {answer}",
        "max_length": 64,
    },
    "train": {"max_steps": 60, "learning_rate": 1e-2, "per_device_train_batch_size": 4},
    "evaluation": {"metrics": ["perplexity", "exact_match", "rouge"], "bootstrap_samples": 50},
    "generation": {"max_new_tokens": 5},
}
LORA = {"adapter": {"type": "lora", "r": 4}, "name": "lora"}
NUM_ROWS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, chance = tmp_path_factory.mktemp("compare"), random.Random(0)
    for name, count in (("rows", 40), ("held", NUM_ROWS)):
        rows = [{"word": "".join(chance.choices("abc", k=4)), "answer": "ppp"} for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train({name: differing(SFT, changes) for name, changes in {"full": {}, "lora": LORA}.items()}, folder)
    return folder


@pytest.fixture(scope="module")
def course(place: Path) -> tuple[Path, dict[str, Any]]:
    """The run's folder, and what `--json` printed."""
    config = {key: value for key, value in SFT.items() if key != "train"} | {
        "stage": "evaluate",
        "name": "course",
        "models": {"instruct": {"path": "runs/full"}, "peft": {"path": "runs/lora"}},
        "evaluation": {
            **SFT["evaluation"],
            "metrics": [*SFT["evaluation"]["metrics"], "judge"],
            "judge": {"model": {"path": "builtin:tiny-llama"}},
        },
        "parallel": {"num_processes": 2},
    }
    result = scaleup(
        "compare", write_config(config, place), "--by", "exact_match", "--by", "judge", "--json", cwd=place
    )
    assert result.code == 0, f"{result.stderr}\n{logs(place / 'runs/course')}"
    return place / "runs/course", json.loads(result.stdout)


def test_the_course_s_table_in_one_command(course: tuple[Path, dict[str, Any]], place: Path) -> None:
    folder, told = course
    assert [column["name"] for column in told["columns"]] == ["baseline", "instruct", "peft"]
    match = told["metrics"]["exact_match"]
    assert (match["baseline"]["value"], match["instruct"]["value"]) == (0.0, 1.0), "the task is easily learned"
    assert (match["instruct"]["points"], match["instruct"]["difference_interval"]) == (100.0, [1.0, 1.0])
    assert match["instruct"]["p_value"] == 2 / 2**NUM_ROWS
    original, whole, peft = (column["cost"] for column in told["columns"])
    assert whole["trained parameters"] == whole["parameters"] == original["parameters"]
    assert 0 < peft["trained parameters"] == peft["parameters"] - original["parameters"]
    assert original["training seconds"] is None and whole["training seconds"] > 0 and peft["training MiB"] > 0
    assert all(each["evaluation seconds"] > 0 and each["answers a second"] > 0 for each in (original, whole, peft))
    assert told["samples"] and set(told["samples"][0]["answers"]) == {"baseline", "instruct", "peft"}
    assert json.loads((folder / "compare.json").read_text()) == told
    won, judged = told["wins"]["judge"]["peft"], told["metrics"]["judge"]
    assert judged["baseline"]["value"] == 0.5 and won["wins"] + won["ties"] + won["losses"] == NUM_ROWS
    assert judged["peft"]["value"] == (won["wins"] + won["ties"] / 2) / NUM_ROWS
    assert 0 < told["metrics"]["judge_by_order"]["peft"]["value"] <= 1, "a random model goes by the order"
    assert all((folder / f"compare.{kind}").stat().st_size > 500 for kind in ("csv", "md", "html"))


def test_a_finished_comparison_is_shown_again_by_another_metric(
    course: tuple[Path, dict[str, Any]], place: Path
) -> None:
    folder, _ = course
    result = scaleup("compare", f"{folder}:peft", f"{folder}:instruct", "--by", "rouge1", "-o", "out", cwd=place)
    assert result.code == 0, result.stderr
    assert all(word in result.stdout for word in ("rows won against", "rouge1", "McNemar p", "training seconds"))
    assert {file.suffix for file in (place / "out").iterdir()} == {".csv", ".html", ".json", ".md"}


def changed_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(differing(yaml.safe_load(file.read_text()), changes)))

    return change


def changed_rows(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        file = folder / "predictions.jsonl"
        rows = change([json.loads(line) for line in file.read_text().splitlines()])
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return rewrite


def changed_signature(folder: Path) -> None:
    file = folder / "metrics.json"
    file.write_text(file.read_text().replace('"rouge_tokenizer": "default"', '"rouge_tokenizer": "unicode"'))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (changed_rows(lambda rows: rows[1:]), "data.test: ONE:peft was measured on 12 rows and TWO:peft on 11"),
        (
            changed_rows(lambda rows: [*rows[:3], {**rows[3], "prompt": "other:"}, *rows[4:]]),
            "data.test: 1 of 12 rows of TWO:peft are others than those of ONE:peft, the first of id 3",
        ),
        (
            changed_config(**{"generation.max_new_tokens": 9}),
            "generation.max_new_tokens: is 5 in ONE:peft and 9 in TWO:peft",
        ),
        (
            changed_config(**{"generation.temperature": 1.0, "generation.seed": 3}),
            "generation.seed: is 0 in ONE:peft and 3 in TWO:peft",
        ),
        (changed_config(**{"data.max_length": 32}), "data.max_length: is 64 in ONE:peft and 32 in TWO:peft"),
        (
            changed_config(**{"data.few_shot": {"num_examples": 2}}),
            "data.few_shot: is not set in ONE:peft and {",
        ),
        (changed_signature, "evaluation.metrics: rouge_tokenizer is 'default' in ONE:peft and 'unicode' in TWO:peft"),
    ],
)
def test_what_is_not_comparable_is_refused(
    course: tuple[Path, dict[str, Any]], tmp_path: Path, change: Callable[[Path], None], expected: str
) -> None:
    folder, other = course[0], tmp_path / "other"
    shutil.copytree(folder, other)
    same, _ = read_columns([f"{folder}:peft", f"{other}:peft"])
    assert same[0].scores == same[1].scores
    change(other)
    with pytest.raises(ScaleupError) as refused:
        read_columns([f"{folder}:peft", f"{other}:peft"])
    told = [str(problem).replace(str(folder), "ONE").replace(str(other), "TWO") for problem in refused.value.problems]
    assert any(line.startswith(expected) and " -> evaluate both " in line for line in told), told


def test_answers_that_are_gone(course: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, other = course[0], tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "predictions.jsonl").unlink()
    with pytest.raises(ScaleupError, match=r"its predictions\.jsonl cannot be read"):
        read_columns([f"{folder}:peft", f"{other}:peft"])


def test_every_reason_is_told_at_once(course: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, other = course[0], tmp_path / "other"
    shutil.copytree(folder, other)
    changed_config(**{"generation.max_new_tokens": 9, "data.max_length": 32})(other)
    changed_rows(lambda rows: rows[1:])(other)
    with pytest.raises(ScaleupError) as refused:
        read_columns([f"{folder}:peft", f"{other}:peft"])
    assert [problem.where for problem in refused.value.problems] == [
        "data.test",
        "data.max_length",
        "generation.max_new_tokens",
    ]


def test_what_is_no_evaluation_is_refused(course: tuple[Path, dict[str, Any]], place: Path) -> None:
    result = scaleup("compare", "runs/full", "runs/course", "runs/none", "runs/course:none", cwd=place)
    assert result.code == 2
    assert result.stderr.splitlines() == [
        "error: runs/full: has no finished evaluation -> scaleup evaluate runs/full",
        "error: runs/course: has no column 'model' -> name one of runs/course:baseline, runs/course:instruct, "
        "runs/course:peft",
        "error: runs/none: is no run folder -> name the folder of a run, e.g. runs/reviews",
        "error: runs/course:none: has no column 'none' -> name one of runs/course:baseline, runs/course:instruct, "
        "runs/course:peft",
    ]
