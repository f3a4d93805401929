"""Mistakes in measuring and fighting forgetting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.mistakes.case import GOOD_ROW, bad

OLD: dict[str, Any] = {"data.regularization": "old.jsonl"}


def old_rows(folder: Path) -> None:
    (folder / "old.jsonl").write_text(GOOD_ROW, encoding="utf-8")


FORGETTING = [
    bad(
        "old tasks without a name",
        "error: data.retain.0.task: is missing",
        "error: data.retain.1.task: 'a/b' should be letters, digits",
        changes={"data.retain": [{"path": "old.jsonl"}, {"path": "old.jsonl", "task": "a/b"}]},
        prepare=old_rows,
    ),
    bad(
        "old tasks that cannot be measured",
        "olds.jsonl' does not exist -> did you mean 'old.jsonl'?",
        "rows.jsonl' is training data too (data.train.0.path)",
        changes={"data.retain": [{"path": "olds.jsonl", "task": "c"}, {"path": "rows.jsonl", "task": "d"}]},
        prepare=old_rows,
    ),
    bad(
        "rows of old tasks in another stage",
        "error: data.retain: has no meaning for distill -> leave it out: stage sft measures it",
        "error: data.regularization: has no meaning for distill -> leave it out: stage sft has regularization",
        changes={
            "stage": "distill",
            "teacher": {"path": "builtin:tiny-qwen2"},
            "data.retain": [{"path": "old.jsonl", "task": "old"}],
            **OLD,
        },
        prepare=old_rows,
    ),
    bad(
        "old rows that nothing reads",
        "error: data.regularization: is never read: there is no regularization -> give regularization: {type: ewc,",
        changes=OLD,
        prepare=old_rows,
    ),
    bad(
        "a term of no weight",
        "error: regularization.weight: 0 should be greater than 0",
        changes={"regularization": {"type": "l2sp", "weight": 0}},
    ),
    bad(
        "a term without its rows",
        "error: data.regularization: is needed by regularization.type: ewc -> name rows of what the model should keep",
        changes={"regularization": {"type": "ewc", "weight": 1}},
    ),
    bad(
        "a term of weights alone with rows, and weights that go",
        "error: data.regularization: has no meaning for regularization.type: l2sp, which looks at weights alone",
        "error: regularization: is not supported with adalora",
        changes={
            "regularization": {"type": "l2sp", "weight": 1},
            "adapter": {"type": "adalora", "tinit": 1, "tfinal": 1},
            **OLD,
        },
        prepare=old_rows,
    ),
    bad(
        "a copy beside what cannot have one",
        "error: quantization: kl is not supported with it",
        "error: data.packing: kl reads as many old rows as a micro-batch has new ones",
        "error: train.tokens_per_device: kl reads as many old rows as a micro-batch has new ones",
        changes={
            "regularization": {"type": "kl", "weight": 1},
            "adapter": {"type": "lora"},
            "quantization": "4bit",
            "data.packing": True,
            "train.per_device_train_batch_size": None,
            "train.tokens_per_device": 128,
            **OLD,
        },
        prepare=old_rows,
    ),
]
CASES = {"forgetting": FORGETTING}
