"""Mistakes about deployment cards."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.mistakes.case import GOOD_ROW, bad, rows

CARD = {
    "stage": "card",
    "train": None,
    "data.train": None,
    "data.validation": None,
    "data.test": "rows.jsonl",
}


def adapter(folder: Path) -> None:
    (folder / "lora").mkdir()
    (folder / "lora/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "gpt2"}))
    (folder / "lora/adapter_model.safetensors").write_text("weights")
    rows(GOOD_ROW)(folder)


CARDS = [
    bad(
        "no variants",
        "error: variants: is missing",
        changes=CARD,
        prepare=rows(GOOD_ROW),
    ),
    bad(
        "a variant that is not there, an adapter, two processes and a metric without rows",
        "error: variants.gone: there is no model folder ./gone",
        "error: variants.lora: lora is an adapter, and what is deployed is the merged model -> merge it first: scaleup "
        "export lora",
        "error: parallel.num_processes: a card measures one model at a time",
        "error: evaluation.metrics: a card cannot measure toxicity",
        "error: evaluation.toxicity_model: is needed for toxicity",
        "error: evaluation.toxic_label: is needed for toxicity",
        changes={
            **CARD,
            "variants": {"gone": "./gone", "lora": "lora"},
            "parallel.num_processes": 2,
            "evaluation": {"metrics": ["toxicity"]},
        },
        prepare=adapter,
    ),
    bad(
        "a variant of another kind, and a prompt longer than the positions",
        "error: variants.t5: variants.t5 is a seq2seq_lm model, and what it is compared with a causal_lm model",
        "error: card.prompt_tokens: 4000 and card.new_tokens 32 exceed variants.gpt2's 512 positions",
        changes={
            **CARD,
            "variants": {"t5": "builtin:tiny-t5", "gpt2": "builtin:tiny-gpt2"},
            "card": {"prompt_tokens": 4000},
        },
        prepare=rows(GOOD_ROW),
        asks=True,
    ),
]

CASES = {"card": CARDS}
