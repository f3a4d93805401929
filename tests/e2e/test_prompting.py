"""Zero- and few-shot prompts, several answers a prompt and a conversation, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli import scaleup, write_config

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


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


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


def test_several_answers_a_prompt_do_not_depend_on_the_processes(folder: Path) -> None:
    generation = {"max_new_tokens": 4, "temperature": 1.0, "num_return_sequences": 2, "top_k": 50, "seed": 3}
    found = []
    for number in (1, 2):
        config = {**CONFIG, "stage": "generate", "name": f"answers-{number}", "generation": generation}
        config["parallel"] = {"num_processes": number}
        result = scaleup("generate", write_config(config, folder), cwd=folder)
        assert result.code == 0, result.stderr
        found.append(lines_of(folder / f"runs/answers-{number}/generations.jsonl"))
    assert found[0] == found[1]
    assert [row["id"] for row in found[0]] == [0, 1]
    assert all(len(set(row["completions"])) == 2 for row in found[0])


def test_a_conversation_by_lines(folder: Path) -> None:
    """The tiny model has a chat template; the second time it is asked the same, it has read what was said before."""
    settings = ["generation.max_new_tokens=24", "generation.min_new_tokens=24"]
    command = [sys.executable, "-m", "scaleup.cli", "chat", "builtin:tiny-llama", *settings]
    said = ["hello", "", "hello", "/reset", "hello", "/exit", "never read"]

    def talk(*lines: str) -> str:
        done = subprocess.run(command, cwd=folder, input="\n".join(lines), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    alone, whole = talk("hello"), talk(*said)
    assert alone.strip()
    assert whole.startswith(alone) and whole.endswith(alone)
    assert whole not in (alone * 2, alone * 3)


def test_what_a_conversation_cannot_have_is_refused(folder: Path) -> None:
    result = scaleup("chat", "builtin:tiny-llama", "generation.num_beams=2", cwd=folder)
    assert result.code == 2
    assert "error: generation.num_beams: is of whole answers, and a chat shows one as it is written" in result.stderr
