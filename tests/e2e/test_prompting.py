"""Zero- and few-shot prompts, several answers a prompt and a conversation, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli import lines_of, scaleup, write_config

ROWS = [{"text": f"film {number}", "label": "good" if number % 2 else "bad"} for number in range(6)]
DATA = {"train": "train.jsonl", "test": "test.jsonl", "prompt": "Review: {text}\nSentiment:", "completion": " {label}"}
CONFIG: dict[str, Any] = {
    "model": {"path": "builtin:tiny-llama"},
    "data": DATA,
    "generation": {"max_new_tokens": 4},
    "parallel": {"num_processes": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompting")
    for name, rows in (("train", ROWS), ("test", [*ROWS[:1], {"text": "another", "label": "good"}])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_few_shot_prompts_are_what_is_measured_and_shown(folder: Path) -> None:
    config = {**CONFIG, "stage": "evaluate", "name": "shots", "data": {**DATA, "few_shot": {"num_examples": 2}}}
    config["evaluation"] = {"metrics": ["perplexity", "exact_match"]}
    result = scaleup("evaluate", write_config(config, folder), cwd=folder)
    assert result.code == 0, result.stderr
    first, _ = lines_of(folder / "runs/shots/predictions.jsonl")
    *examples, asked = first["prompt"].split("\n\n")
    assert asked == "Review: film 0\nSentiment:" and len(examples) == 2
    shown = {f"Review: {row['text']}\nSentiment: {row['label']}" for row in ROWS[1:]}
    assert set(examples) <= shown, "never the row itself"


@pytest.mark.slow
def test_several_answers_a_prompt_behind_their_examples(folder: Path) -> None:
    generation = {"max_new_tokens": 4, "temperature": 1.0, "num_return_sequences": 2, "top_k": 50, "seed": 3}
    config = {**CONFIG, "stage": "generate", "name": "answers", "generation": generation}
    config["data"] = {**DATA, "few_shot": {"indices": [1]}}
    result = scaleup("generate", write_config(config, folder), cwd=folder)
    assert result.code == 0, result.stderr
    found = lines_of(folder / "runs/answers/generations.jsonl")
    assert [row["id"] for row in found] == [0, 1]
    assert all(row["prompt"].startswith("Review: film 1\nSentiment: good\n\nReview: ") for row in found)
    assert all(len(set(row["completions"])) == 2 for row in found)
    assert found[0]["completions"][1] in result.stdout


def test_a_conversation_by_lines(folder: Path) -> None:
    command = [sys.executable, "-m", "scaleup.cli", "chat", "builtin:tiny-llama", "generation.max_new_tokens=8"]
    said = "hello\n\n/reset\nhello\n/exit\nnever read"
    done = subprocess.run(command, cwd=folder, input=said, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout[: len(done.stdout) // 2], done.stdout[len(done.stdout) // 2 :]
    assert first == second, "what was said is forgotten"
    assert first.strip()


def test_what_a_conversation_cannot_have_is_refused(folder: Path) -> None:
    result = scaleup("chat", "builtin:tiny-llama", "generation.num_beams=2", cwd=folder)
    assert result.code == 2
    assert "error: generation.num_beams: is of whole answers, and a chat shows one as it is written" in result.stderr
