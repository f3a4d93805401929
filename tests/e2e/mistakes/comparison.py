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
        "a language model beside a classifier",
        "error: models.two.path: (LlamaForCausalLM) is no classifier, and the rows are texts with a class",
        changes={
            **MODELS,
            "data": {"test": "held.jsonl", "text": "{text}", "label": "label"},
            "model.path": "builtin:tiny-bert-classifier",
            "models": {"two": {"path": "builtin:tiny-llama"}},
        },
        command=("compare", "config.yaml"),
        asks=True,
    ),
    bad(
        "a judge that is not named, of one column",
        "error: evaluation.metrics: judge compares answers with the first column's, and there is one column",
        "error: evaluation.judge.model: is needed for judge -> name a language model",
        changes={**MODELS, "evaluation": {"metrics": ["judge"]}},
        command=("compare", "config.yaml"),
    ),
    bad(
        "a judge that cannot tell two responses apart",
        "error: evaluation.judge.template: has no field 'answer' -> write {prompt} and {first} and {second}",
        "error: evaluation.judge.template: does not hold {second}: all responses would score the same",
        "error: evaluation.judge.options: are alike",
        changes={
            **MODELS,
            "models": {"two": {"path": "builtin:tiny-llama"}},
            "evaluation": {
                "metrics": ["judge"],
                "judge": {
                    "model": {"path": "builtin:tiny-llama"},
                    "template": "{prompt} {first} {answer}",
                    "options": ["A", " A"],
                },
            },
        },
        command=("compare", "config.yaml"),
    ),
    bad(
        "a classifier as a judge",
        "error: evaluation.judge.model.path: is a sequence classifier (BertForSequenceClassification)",
        "error: evaluation.judge.max_length: 600 tokens are more than the 512 that evaluation.judge.model has",
        changes={
            **MODELS,
            "models": {"two": {"path": "builtin:tiny-llama"}},
            "evaluation": {
                "metrics": ["judge"],
                "judge": {"model": {"path": "builtin:tiny-bert-classifier"}, "max_length": 600},
            },
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
