"""Mistakes about classifiers that are trained."""

from __future__ import annotations

from tests.e2e.mistakes.case import bad, rows

CLASSIFY = {
    "stage": "classify",
    "data.validation": None,
    "data.prompt": None,
    "data.completion": None,
    "data.text": "{text}",
    "data.label": "label",
}
LETTERS = ['{"text": "t", "label": "a"}', '{"text": "u", "label": "b"}']

CASES = {
    "classify": [
        bad(
            "labels that are none of those listed, and class weights of another count",
            "rows.jsonl:2: 'label' 'b' is no class of the model -> use one of a, c, or its number",
            "rows.jsonl:3: 'label' is null",
            "error: classify.class_weights: has 3 numbers for 2 labels (a, c)",
            "error: data.packing: not supported for classifiers",
            "error: model.task: a classifier is no causal_lm model",
            changes={
                **CLASSIFY,
                "classify.labels": ["a", "c"],
                "classify.class_weights": [1.0, 2.0, 3.0],
                "data.packing": True,
                "model.task": "causal_lm",
            },
            prepare=rows(*LETTERS, '{"text": "v", "label": null}'),
        ),
        bad(
            "a label that the model's own head does not have",
            "rows.jsonl:2: 'label' 'b' is no class of the model -> use one of negative, positive, or its number",
            changes={**CLASSIFY, "model.path": "builtin:tiny-bert-classifier"},
            prepare=rows('{"text": "t", "label": "positive"}', LETTERS[1]),
            asks=True,
        ),
        bad(
            "settings that the model's own head is against",
            "error: classify.labels: are not those that builtin:tiny-bert-classifier has a head for: negative, ",
            changes={
                **CLASSIFY,
                "model.path": "builtin:tiny-bert-classifier",
                "classify.labels": ["positive", "negative"],
            },
            prepare=rows('{"text": "t", "label": "positive"}'),
            asks=True,
        ),
        bad(
            "weights for other labels than the rows have",
            "error: classify.class_weights: has 3 numbers for 2 labels (a, b) -> give each label one, in this order",
            changes={**CLASSIFY, "classify.class_weights": [1.0, 2.0, 3.0]},
            prepare=rows(*LETTERS),
            asks=True,
        ),
        bad(
            "labels that nobody can know before the rows are there",
            "error: classify.problem: is needed: the model has no head, and not all rows are read before training",
            "error: classify.labels: is needed: the model has no head, and not all rows are read before training",
            changes={**CLASSIFY, "data.train": "owner/dataset"},
            asks=True,
        ),
        bad(
            "one label, and nothing to balance it with",
            "error: data.label: all rows have the label 'a', and a class says nothing of a text where there is one",
            changes={**CLASSIFY, "classify.class_weights": [1.0]},
            prepare=rows(LETTERS[0], LETTERS[0]),
            asks=True,
        ),
        bad(
            "a label that no training row has, which nothing balances",
            "error: classify.class_weights: balanced needs rows with and without the label 'c': 0 of 2 have it",
            changes={**CLASSIFY, "classify.labels": ["a", "b", "c"], "classify.class_weights": "balanced"},
            prepare=rows(*LETTERS),
            asks=True,
        ),
        bad(
            "lists and names in one column",
            "rows.jsonl:2: 'label' 'b' is no list of labels -> write a list",
            changes={**CLASSIFY, "classify.problem": "multi_label"},
            prepare=rows('{"text": "t", "label": ["a"]}', LETTERS[1]),
            asks=True,
        ),
        bad(
            "regression on names, with weights",
            "error: classify.class_weights: has no meaning for regression",
            "rows.jsonl:1: 'label' 'a' is not a number -> make it a number or drop the row",
            changes={
                **CLASSIFY,
                "classify.problem": "regression",
                "classify.labels": ["stars"],
                "classify.class_weights": [1.0],
            },
            prepare=rows(LETTERS[0]),
        ),
        bad(
            "an adapter of virtual tokens",
            "error: adapter.type: virtual tokens move the place at which a classifier's score is read",
            changes={**CLASSIFY, "adapter": {"type": "prompt_tuning", "num_virtual_tokens": 4}},
            prepare=rows(*LETTERS),
        ),
        bad(
            "token classification",
            "error: classify.problem: token_classification labels every token of a text, which no stage trains -> use",
            changes={**CLASSIFY, "classify.problem": "token_classification"},
            prepare=rows(*LETTERS),
        ),
        bad(
            "token classification as the model's task",
            "error: model.task: token_classification labels every token of a text, which no stage trains -> use",
            changes={**CLASSIFY, "model.task": "token_classification"},
            prepare=rows(*LETTERS),
        ),
        bad(
            "rows without a class",
            "error: data.completion: says nothing of a text's class -> give data.text and data.label",
            changes={"stage": "classify"},
        ),
        bad(
            "a weight that takes a label away, and a way of weighing that there is none of",
            "error: classify.class_weights.1: ",
            changes={**CLASSIFY, "classify.class_weights": [1.0, 0.0]},
            prepare=rows(*LETTERS),
        ),
    ],
}
