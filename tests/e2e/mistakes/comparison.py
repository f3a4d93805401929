"""Mistakes about models side by side, and about what is compared."""

from __future__ import annotations

from tests.e2e.mistakes.case import bad, earlier

MODELS = {"stage": "evaluate", "train": None, "data.test": "held.jsonl", "data.train": None}

COMPARISONS = [
    bad(
        "models, a baseline and adapters",
        "error: baseline: and models exclude each other: these are compared with model -> name it under models",
        "error: models.baseline: the results have a 'baseline' already -> choose another name",
        "error: models.gone.path: there is no model folder ./gone",
        changes={
            **MODELS,
            "baseline": {"path": "builtin:tiny-llama"},
            "models": {"baseline": {"path": "builtin:tiny-llama"}, "gone": {"path": "./gone"}},
        },
        command=("compare", "config.yaml"),
    ),
    bad(
        "models with other tokens by kl, of which only their files can tell",
        "error: models.two: has other tokens than evaluation.reference, and kl compares probabilities",
        changes={
            **MODELS,
            "models": {"one": {"path": "builtin:tiny-llama"}, "two": {"path": "builtin:tiny-t5"}},
            "evaluation": {"metrics": ["kl"], "reference": {"path": "builtin:tiny-llama"}},
        },
        command=("compare", "config.yaml"),
        asks=True,
    ),
    bad(
        "classifiers side by side",
        "error: models: are put side by side where they answer: not on pairs, nor if they are classifiers",
        changes={
            **MODELS,
            "data": {"test": "held.jsonl", "text": "{text}", "label": "label"},
            "model.path": "builtin:tiny-bert-classifier",
            "models": {"two": {"path": "builtin:tiny-bert-classifier"}},
        },
        command=("compare", "config.yaml"),
        asks=True,
    ),
    bad(
        "a config of another stage",
        "error: config.yaml: has stage sft, not evaluate",
        command=("compare", "config.yaml"),
    ),
    bad(
        "tables under a file",
        "error: --output: rows.jsonl/tables cannot be written: ",
        command=("compare", "runs/none", "--output", "rows.jsonl/tables"),
    ),
    bad(
        "runs that are not finished, or not there",
        "error: runs/reviews: is a run that has not finished",
        "error: runs/none: is no run folder",
        prepare=earlier(),
        command=("compare", "runs/reviews", "runs/none"),
    ),
]

CASES = {"comparison": COMPARISONS}
