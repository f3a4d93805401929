"""Mistakes about learning from preferences."""

from __future__ import annotations

from tests.e2e.mistakes.case import bad, rows

DPO = {
    "stage": "dpo",
    "data.validation": None,
    "data.prompt": None,
    "data.completion": None,
    "data.chosen": "{good}",
    "data.rejected": "{bad}",
}
KTO = {
    "stage": "dpo",
    "dpo.loss": "kto",
    "data.validation": None,
    "data.prompt": "{ask}",
    "data.completion": "{good}",
    "data.label": "wanted",
}
PAIR = '{"good": "a", "bad": "b"}'

CASES = {
    "preferences": [
        bad(
            "a loss that there is none of",
            "error: dpo.loss: 'exo_pair' is not valid -> use one of 'dpo', 'ipo', 'hinge', 'robust', 'sppo', 'orpo',",
            changes={**DPO, "dpo.loss": "exo_pair"},
            prepare=rows(PAIR),
        ),
        bad(
            "settings of other losses, weights of another count, packing and a reference without an adapter",
            "error: dpo.label_smoothing: has no meaning for loss: dpo, sft",
            "error: dpo.simpo_gamma: has no meaning for loss: dpo, sft",
            "error: dpo.loss_weights: has 1 numbers for 2 losses (dpo, sft)",
            "error: dpo.reference: adapter_off needs an adapter that can be switched off",
            "error: data.packing: ",
            changes={
                **DPO,
                "dpo.loss": ["dpo", "sft"],
                "dpo.label_smoothing": 0.1,
                "dpo.simpo_gamma": 1.0,
                "dpo.loss_weights": [0.5],
                "dpo.reference": "adapter_off",
                "data.packing": True,
            },
            prepare=rows(PAIR),
        ),
        bad(
            "a reference that is never looked at, a copy beside an adapter, and a loss twice",
            "error: dpo.loss: names a loss twice",
            "error: dpo.reference: copy is never looked at: loss: orpo, orpo has none",
            changes={**DPO, "dpo.loss": ["orpo", "orpo"], "dpo.reference": "copy"},
            prepare=rows(PAIR),
        ),
        bad(
            "an adapter that is copied, and one that cannot be",
            "error: adapter.type: its reference is the model without it, and nothing here shows that",
            "error: dpo.reference: copy is not supported with an adapter",
            changes={**DPO, "adapter": {"type": "prefix", "num_virtual_tokens": 4}, "dpo.reference": "copy"},
            prepare=rows(PAIR),
        ),
        bad(
            "prompts that differ",
            "rows.jsonl:1: 'rejected[0]' has another prompt than chosen",
            changes=DPO,
            prepare=rows(
                '{"good": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}], '
                '"bad": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "d"}]}'
            ),
        ),
        bad(
            "pairs for kto, a sum with it, and a stream",
            "error: dpo.loss: kto is of single responses, and the others of pairs: they cannot be summed",
            "error: dpo.label_smoothing: has no meaning for loss: kto, sft",
            "error: data.chosen: is not of single responses that are desirable or not, as kto needs",
            "error: data.streaming: kto compares each row with the response of another",
            changes={**DPO, "dpo.loss": ["kto", "sft"], "dpo.label_smoothing": 0.1, "data.streaming": True},
            prepare=rows(PAIR, PAIR),
        ),
        bad(
            "labels of kto that are neither true nor false, with their places",
            "rows.jsonl:2: 'wanted' 'perhaps' is neither true nor false -> use one of them",
            "rows.jsonl:3: 'wanted' holds a int, not true or false",
            "rows.jsonl:4: 'wanted' is null",
            "rows.jsonl:5: 'good' is no column of this row; 'wanted' is no column of this row",
            changes=KTO,
            prepare=rows(
                '{"ask": "a", "good": "b", "wanted": "True"}',
                '{"ask": "a", "good": "b", "wanted": "perhaps"}',
                '{"ask": "a", "good": "b", "wanted": 1}',
                '{"ask": "a", "good": "b", "wanted": null}',
                '{"ask": "a"}',
            ),
        ),
        bad(
            "kto of rows that nothing judges",
            "error: data.completion: nothing says whether it is desirable, as kto needs",
            "error: dpo.reference_free: has no meaning for loss: kto",
            changes={**KTO, "data.label": None, "dpo.reference_free": True},
            prepare=rows(*2 * ['{"ask": "a", "good": "b", "wanted": true}']),
        ),
        bad(
            "one row, which is compared with another's response",
            "error: data.train: has one row, and kto compares each with the response of another -> give more rows",
            changes=KTO,
            prepare=rows('{"ask": "a", "good": "b", "wanted": true}'),
        ),
        bad(
            "judged responses for a loss of pairs, with its weights, and a cache of what is streamed",
            "error: data.label: says whether a completion is desirable, and loss dpo compares two -> use dpo.loss: kto",
            "error: dpo.desirable_weight: has no meaning for loss: dpo",
            "error: data.streaming: the reference reads all rows before training (dpo.reference: cached)",
            changes={
                **KTO,
                "dpo.loss": "dpo",
                "dpo.desirable_weight": 2.0,
                "dpo.reference": "cached",
                "data.streaming": True,
            },
            prepare=rows('{"ask": "a", "good": "b", "wanted": true}'),
        ),
        bad(
            "judged responses for stage sft",
            "error: data.label: says whether a completion is desirable, which stage sft does not learn from",
            changes={
                "data.prompt": "{ask}",
                "data.completion": "{good}",
                "data.label": "wanted",
                "data.validation": None,
            },
            prepare=rows('{"ask": "a", "good": "b", "wanted": true}'),
        ),
        bad(
            "metrics of answers on pairs",
            "error: evaluation.metrics: are not of pairs, of which it is measured how likely both responses are",
            changes={
                "stage": "evaluate",
                "train": None,
                "data": {"test": "rows.jsonl", "chosen": "{good}", "rejected": "{bad}"},
                "evaluation.metrics": ["rouge"],
            },
            prepare=rows(PAIR),
            asks=True,
        ),
        bad(
            "a label beside pairs, which is no classifier's",
            "error: data.label: is set beside chosen, rejected: a row has one format -> keep one of them",
            changes={**DPO, "data.label": "good"},
            prepare=rows(PAIR),
        ),
        bad(
            "rows that say nothing of a preference, and a classifier",
            "error: data.completion: says nothing of which response is preferred",
            changes={"stage": "dpo"},
        ),
    ],
}
