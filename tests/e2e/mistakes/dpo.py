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
PAIR = '{"good": "a", "bad": "b"}'

CASES = {
    "preferences": [
        bad(
            "a loss that there is none of",
            "error: dpo.loss: 'kto' is not valid -> use one of 'dpo', 'ipo', 'hinge', 'robust', 'sppo', 'orpo',",
            changes={**DPO, "dpo.loss": "kto"},
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
            "error: adapter.type: prefix is not supported with stage dpo",
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
            "rows that say nothing of a preference, and a classifier",
            "error: data.completion: says nothing of which response is preferred",
            changes={"stage": "dpo"},
        ),
    ],
}
