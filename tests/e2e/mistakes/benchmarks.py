"""Mistakes in naming the benchmarks of an evaluation."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.mistakes.case import bad

ALONE = {
    "stage": "evaluate",
    "train": None,
    "data.train": None,
    "data.validation": None,
    "data.prompt": None,
    "data.completion": None,
    "evaluation.metrics": [],
}


def task_files(folder: Path) -> None:
    for name, text in {
        "own": "task: own\ninclude: base\n",
        "base": "dataset_path: json\nprocess_docs: !function rows.cleaned\n",
        "broken": "task: [\n",
        "nothing": "dataset_path: json\n",
    }.items():
        (folder / (name if name == "base" else f"{name}.yaml")).write_text(text, encoding="utf-8")
    (folder / "empty").mkdir()


TASKS = [
    bad(
        "benchmarks that nobody knows",
        "error: evaluation.tasks: names mmlu twice -> leave it out",
        "error: evaluation.tasks: lm_eval knows no task, group or tag 'hellaswagg' -> did you mean 'hellaswag'?",
        "error: evaluation.tasks: there is no file or folder ",
        changes={**ALONE, "evaluation.tasks": ["mmlu", "hellaswagg", "mmlu", "./no.yaml"]},
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "files that are no tasks, or run code",
        "own.yaml would run code: !function rows.cleaned -> read it, and say evaluation.trust_remote_code: true",
        "broken.yaml cannot be read: while parsing a flow node",
        "nothing.yaml is no task: it has neither task nor group",
        "empty holds no task",
        changes={**ALONE, "evaluation.tasks": ["own.yaml", "broken.yaml", "nothing.yaml", "./empty"]},
        prepare=task_files,
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "nothing to measure, and settings of benchmarks",
        "error: evaluation.metrics: is empty, and so is evaluation.tasks: nothing would be measured",
        "error: evaluation.num_fewshot: is of evaluation.tasks, and there are none -> leave it out",
        "error: evaluation.apply_chat_template: is of evaluation.tasks, and there are none -> leave it out",
        changes={**ALONE, "evaluation.num_fewshot": 2, "evaluation.apply_chat_template": True},
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "benchmarks of a classifier",
        "error: evaluation.tasks: are for language models, and model is a classifier (BertForSequenceClassification)",
        changes={**ALONE, "evaluation.tasks": ["mmlu"], "model.path": "builtin:tiny-bert-classifier"},
        command=("evaluate", "config.yaml"),
        asks=True,
    ),
]
CASES = {"tasks": TASKS}
