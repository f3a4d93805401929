"""Answers revised by principles, and preferences of a judge, through the command line; the whole chain of
constitutional AI as a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli import differing, run, scaleup
from tests.conftest import REPOSITORY

PROMPTS = ["ab?\n", "Say it: ", "c\n"]
REVISE: dict[str, Any] = {
    "stage": "revise",
    "name": "revise",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"test": "prompts.jsonl", "prompt": "{prompt}"},
    "revise": {"constitution": "principles.yaml", "num_revisions": 2},
    "generation": {"max_new_tokens": 5},
}
JUDGE: dict[str, Any] = {
    "stage": "judge",
    "name": "judge",
    "model": {"path": "builtin:tiny-gpt2"},
    "data": {"test": "answers.jsonl"},
    "judge": {"constitution": "principles.yaml", "batch_size": 3},
}
COMPLETIONS = [["yes", "no", "yes"], ["it", "that is it"], ["c", " "]]
PRINCIPLES = """
principles:
  - {name: short, critique_request: "Too long?", revision_request: Shorten., question: "Which is shorter?"}
  - {name: kind, critique_request: "Rude?", revision_request: Be kind., question: "Which is kinder?"}
critique_template: "{prompt}{response} / {critique_request}"
revision_template: "{prompt}{response} / {critique_request} {critique} / {revision_request}"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "principles.yaml").write_text(PRINCIPLES)
    rows = [{"prompt": prompt, "completions": texts} for prompt, texts in zip(PROMPTS, COMPLETIONS, strict=True)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return tmp_path


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def metrics_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text())["metrics"])


@pytest.mark.covers("revise")
def test_answers_are_revised_by_principles(place: Path) -> None:
    folder = run(REVISE, cwd=place)
    rows = rows_of(folder / "revisions.jsonl")
    assert [row["prompt"] for row in rows] == PROMPTS
    for row in rows:
        assert [set(each) for each in row["rounds"]] == [{"principle", "critique", "revision"}] * 2
        texts = [row["initial"], *(each["revision"] for each in row["rounds"])]
        assert row["completion"].strip() == next(text.strip() for text in reversed(texts) if text.strip())
    figures = metrics_of(folder)
    assert figures["prompts"] == 3 and figures["empty_rows_left_out"] == 0


def _now(initial: str) -> str:
    return initial[: len(initial) - len(initial.lstrip())] + initial.strip()


@pytest.mark.covers("judge")
def test_a_judge_prefers_in_both_orders(place: Path) -> None:
    folder = run(JUDGE, cwd=place)
    rows, figures = rows_of(folder / "pairs.jsonl"), metrics_of(folder)
    assert figures["pairs"] == len(rows) == 3 and (figures["left_out_equal"], figures["left_out_empty"]) == (1, 1)
    assert {row["prompt"] for row in rows} == set(PROMPTS[:2]) and "agreement" not in figures
    assert all({row["chosen"], row["rejected"]} in ({"yes", "no"}, {"it", "that is it"}) for row in rows)
    assert all(0.5 < row["probability"] < 1 for row in rows)
    assert figures["order_decides"] == pytest.approx(sum(row["order_decides"] for row in rows) / 3)


@pytest.mark.slow
def test_a_critique_continues_its_template(place: Path) -> None:
    rows = rows_of(run(REVISE, cwd=place) / "revisions.jsonl")
    # What the model was asked can be asked again: a greedy answer to the very text of the template.
    first = rows[0]["rounds"][0]
    requests = {"short": ("Too long?", "Shorten."), "kind": ("Rude?", "Be kind.")}[first["principle"]]
    critique = f"{PROMPTS[0]}{rows[0]['initial']} / {requests[0]}"
    revision = f"{PROMPTS[0]}{_now(rows[0]['initial'])} / {requests[0]} {first['critique']} / {requests[1]}"
    generate = {"stage": "generate", "name": "again", "model": REVISE["model"], "generation": {"max_new_tokens": 5}}
    asked = run(differing(generate, {"generation.prompts": [PROMPTS[0], critique, revision]}), cwd=place)
    texts = [row["completion"] for row in rows_of(asked / "generations.jsonl")]
    assert [texts[0], texts[1].strip(), texts[2]] == [rows[0]["initial"], first["critique"], first["revision"]]


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_write_what_one_does(place: Path) -> None:
    for config in (REVISE, JUDGE):
        one = run(config, cwd=place)
        two = run(differing(config, {"name": f"{config['name']}-2", "parallel.num_processes": 2}), cwd=place)
        (file,) = one.glob("*s.jsonl")
        rows, others = rows_of(file), rows_of(two / file.name)
        for row, other in zip(rows, others, strict=True):
            assert row.pop("probability", 0) == pytest.approx(other.pop("probability", 0), abs=1e-6)
            assert row == other


@pytest.mark.slow
def test_a_judge_of_known_preferences_who_is_asked_in_a_conversation(place: Path) -> None:
    pairs = [{"prompt": "q", "chosen": f"good {number}", "rejected": f"bad {number}"} for number in range(40)]
    (place / "known.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    changes = {"model.path": "builtin:tiny-llama", "data.test": "known.jsonl", "data.max_length": 256}
    settings = {"judge.as_chat": True, "judge.drop_order_decided": True}
    folder = run(differing(JUDGE, changes | settings), cwd=place)
    figures, rows = metrics_of(folder), rows_of(folder / "pairs.jsonl")
    assert figures["pairs"] + figures.get("left_out_order_decided", 0) == 40 and 0 <= figures["agreement"] <= 1
    assert len(rows) == figures["pairs"] and not any(row["order_decides"] for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_chain_of_constitutional_ai(tmp_path: Path) -> None:
    file, examples = REPOSITORY / "configs/pipelines/constitutional-tiny.yaml", tmp_path / "examples"
    examples.symlink_to(REPOSITORY / "examples")
    done = scaleup("run", file, cwd=tmp_path, timeout=600)
    assert done.code == 0, done.stdout + done.stderr
    folders = {name: tmp_path / f"runs/constitutional-tiny-{name}" for name in ("revise", "sft", "judge", "dpo")}
    assert (folders["dpo"] / "model/model.safetensors").is_file()
    assert len(rows_of(folders["judge"] / "pairs.jsonl")) == metrics_of(folders["judge"])["pairs"] > 0
    again = scaleup("run", file, cwd=tmp_path)
    assert again.stdout.splitlines()[-1] == "pipeline constitutional-tiny has finished already; nothing to do"
    tree = json.loads(scaleup("lineage", folders["dpo"], "--json", cwd=tmp_path).stdout)
    assert tree["stale"] == [] and "constitutional-tiny-revise" in json.dumps(tree)
