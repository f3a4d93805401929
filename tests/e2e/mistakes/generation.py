"""Mistakes about how a model answers, and about examples before its prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.e2e.mistakes.case import Case, bad

NO_TRAINING = {"train": None, "data.train": None, "data.validation": None}
WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen"


def asked(name: str, *lines: str, **rest: Any) -> Case:
    """A generation with its settings spoilt."""
    changes = {"stage": "generate", **NO_TRAINING, "generation.prompts": ["a"], **rest.pop("changes")}
    return bad(name, *lines, changes=changes, command=("generate", "config.yaml"), **rest)


def measured(name: str, *lines: str, **rest: Any) -> Case:
    """An evaluation with its settings spoilt, of rows with examples before them."""
    changes = {"stage": "evaluate", "train": None, "data.validation": None, "data.test": "held.jsonl"}
    return bad(name, *lines, changes=changes | rest.pop("changes"), command=("evaluate", "config.yaml"), **rest)


def long_rows(folder: Path) -> None:
    rows = [{"text": f"{WORDS} {number}", "label": "positive"} for number in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


ANSWERS = [
    asked(
        "draws of a greedy answer",
        *(
            f"error: generation.{key}: has no meaning for greedy decoding -> give a temperature above 0"
            for key in ("top_p", "top_k", "min_p", "typical_p")
        ),
        "error: generation.num_return_sequences: greedy decoding would give the same answer 3 times -> give a "
        "temperature above 0, or num_beams",
        "error: generation.length_penalty: is of beams, and num_beams is 1 -> leave it out, or give num_beams",
        "error: generation.min_new_tokens: 40 are more than max_new_tokens 32 -> use fewer",
        changes={
            "generation.top_p": 0.5,
            "generation.top_k": 4,
            "generation.min_p": 0.1,
            "generation.typical_p": 0.9,
            "generation.num_return_sequences": 3,
            "generation.length_penalty": 2.0,
            "generation.min_new_tokens": 40,
        },
    ),
    asked(
        "beams that are drawn, and too few",
        "error: generation.temperature: a beam search looks for the likeliest answers, and draws none -> set it to 0, "
        "or generation.num_beams to 1",
        "error: generation.num_return_sequences: 3 are more than the 2 beams -> use at most 2, or more num_beams",
        changes={
            "generation.temperature": 1.0,
            "generation.num_beams": 2,
            "generation.num_return_sequences": 3,
        },
    ),
    asked(
        "nothing to stop at",
        "error: generation.stop.0: '' string should have at least 1 character",
        changes={"generation.stop": [""]},
    ),
    measured(
        "several answers to compare",
        "error: generation.num_return_sequences: one answer a prompt is compared -> leave it out; stage generate",
        changes={"generation": {"temperature": 1.0, "num_return_sequences": 2}},
    ),
]

EXAMPLES = [
    bad(
        "before training rows",
        "error: data.few_shot: has no meaning for sft -> leave it out; evaluate and generate take it",
        changes={"data.few_shot": {"num_examples": 2}},
    ),
    measured(
        "of no rows, both chosen and drawn",
        "error: data.train: is needed by the evaluate stage -> name the rows' file",
        "error: data.few_shot.num_examples: is of examples that are drawn, and indices names them -> give one",
        "error: data.few_shot.balanced: is of examples that are drawn, and indices names them -> give one",
        changes={"data.train": None, "data.few_shot": {"indices": [0], "num_examples": 1, "balanced": True}},
    ),
    measured(
        "before plain text",
        "error: data.few_shot: is of prompts with a completion, and the rows are others -> leave it out",
        changes={"data.prompt": None, "data.completion": None, "data.text": "{text}", "data.few_shot": {}},
    ),
    measured(
        "longer than the context",
        "error: data.few_shot: 1 of 1 prompts do not fit with their examples: model reads 256 tokens of one "
        "(data.max_length), and the longest has ",
        changes={"data.few_shot": {"num_examples": 4}, "data.max_length": 256},
        prepare=long_rows,
        asks=True,
    ),
    asked(
        "longer than an encoder reads",
        "error: data.few_shot: 1 of 2 prompts do not fit with their examples: model reads 400 tokens of one "
        "(data.max_length), and the longest has ",
        changes={
            "model.path": "builtin:tiny-t5",
            "generation.prompts": ["a", f"{WORDS} {WORDS}"],
            "data.train": "rows.jsonl",
            "data.few_shot": {"indices": [0, 1, 2]},
            "data.max_length": 400,
        },
        prepare=long_rows,
        asks=True,
    ),
    measured(
        "longer than the positions with an answer",
        "error: data.few_shot: 1 of 1 prompts do not fit with their examples: model reads 412 tokens of one (its "
        "positions less generation.max_new_tokens 100), and the longest has ",
        changes={
            "data.few_shot": {"num_examples": 4},
            "data.max_length": 512,
            "evaluation.metrics": ["exact_match"],
            "generation.max_new_tokens": 100,
        },
        prepare=long_rows,
        asks=True,
    ),
    measured(
        "a row that is not there",
        "error: data.few_shot.indices: there is no row 9: data.train has 6 -> count from 0",
        changes={"data.few_shot": {"indices": [9]}},
        prepare=long_rows,
        asks=True,
    ),
]
CASES = {"generation": ANSWERS, "few-shot": EXAMPLES}
