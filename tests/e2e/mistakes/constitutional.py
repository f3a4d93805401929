"""Mistakes about revisions by principles and about judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.mistakes.case import Case, bad, rows

NO_TRAINING = {"train": None, "data.train": None, "data.validation": None, "data.prompt": None, "data.completion": None}
PAIR = '{"ask": "a", "good": "b", "bad": "c"}'


def revised(name: str, *lines: str, **rest: Any) -> Case:
    changes = {"stage": "revise", **NO_TRAINING, "data.test": "rows.jsonl", "data.prompt": "{text}"}
    return bad(name, *lines, changes=changes | rest.pop("changes"), **rest)


def judged(name: str, *lines: str, **rest: Any) -> Case:
    changes = {"stage": "judge", **NO_TRAINING, "data.test": "rows.jsonl"}
    return bad(name, *lines, changes=changes | rest.pop("changes"), **rest)


def principles(text: str) -> Any:
    def prepare(folder: Path) -> None:
        (folder / "principles.yaml").write_text(text, encoding="utf-8")
        (folder / "rows.jsonl").write_text(f"{PAIR}\n", encoding="utf-8")

    return prepare


CASES = {
    "constitutional": [
        revised(
            "no file of principles, several answers, prompts of the config",
            "principles.yaml: there is no such file of principles -> name a YAML file with a list `principles`",
            "error: generation.num_return_sequences: one answer a prompt is revised -> leave it out",
            "error: generation.prompts: are for the generate stage -> name their file at data.test",
            changes={
                "revise.constitution": "principles.yaml",
                "generation.num_return_sequences": 2,
                "generation.temperature": 1.0,
                "generation.prompts": ["a"],
            },
        ),
        revised(
            "a principle without a request and a template without its fields",
            "principles.0.critique_request: is not set, and stage revise asks it -> set it",
            "principles.0.revision_request: is not set, and stage revise asks it -> set it",
            "critique_template: does not show {response} -> write {response} where it belongs",
            changes={"revise.constitution": "principles.yaml", "data.prompt": "{ask}"},
            prepare=principles(
                "principles: [{name: a, question: b}]\ncritique_template: '{prompt} {critique_request}'\n"
            ),
        ),
        revised(
            "rows without an answer to revise",
            "error: data.prompt: is set without a completion -> set data.completion beside it",
            changes={"revise.responses": "data"},
        ),
        revised(
            "rows that are texts without a prompt",
            "error: data.text: gives no prompt, and an answer to one is revised",
            changes={"revise.responses": "data", "data.prompt": None, "data.text": "{text}"},
        ),
        judged(
            "rows with one answer",
            "error: data.test: holds one answer a prompt, and two are compared -> name rows with completions, or with "
            "chosen and rejected",
            changes={"data.prompt": "{text}", "data.completion": "{label}"},
        ),
        judged(
            "a principle without a question, and a key that there is none of",
            "principles.0.question: is not set, and stage judge asks it -> set it",
            "principles.yaml: options: are the same text -> give two different ones",
            changes={"judge.constitution": "principles.yaml", "data.chosen": "{good}", "data.rejected": "{bad}"},
            prepare=principles("principles: [{name: a}]\noptions: [A, A]\n"),
        ),
        judged(
            "ranks and ratings at once",
            "error: data.completions: has both ranks and ratings -> set data.ranks or data.ratings",
            changes={"data.completions": "good", "data.ranks": "a", "data.ratings": "b"},
            prepare=rows(PAIR),
        ),
        judged(
            "a question in a conversation for an encoder-decoder model",
            "error: judge.as_chat: model is an encoder-decoder model, which reads no conversation -> leave it out",
            changes={
                "model.path": "builtin:tiny-t5",
                "judge.as_chat": True,
                "data.chosen": "{good}",
                "data.rejected": "{bad}",
            },
            prepare=rows(PAIR),
            asks=True,
        ),
        judged(
            "a classifier as judge",
            "error: model.path: is a sequence classifier",
            changes={"model.path": "builtin:tiny-bert-classifier", "data.chosen": "{good}", "data.rejected": "{bad}"},
            prepare=rows(PAIR),
            asks=True,
        ),
        bad(
            "completions of which nothing says which is better, in training",
            "error: data.completions: says nothing of which is better -> set data.ranks or data.ratings",
            changes={
                "stage": "dpo",
                "data.validation": None,
                "data.prompt": "{ask}",
                "data.completion": None,
                "data.completions": "good",
            },
            prepare=rows(PAIR),
        ),
    ],
}
