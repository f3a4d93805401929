"""Mistakes of `scaleup verify`: of its options, of the config, and configs that have no twins."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.mistakes.case import M, bad

COMMAND = ("verify", "config.yaml")
QUANTIZE = {
    "stage": "quantize",
    "name": "x",
    "model": {"path": "builtin:tiny-llama"},
    "data": {},
    "quantize": {"method": "int8_dynamic"},
}


def adapter(folder: Path) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "gpt2"}')
    (folder / "adapter/adapter_model.safetensors").write_text("weights")


CASES = {
    "verify": [
        bad(
            "options, keys, rows and the model at once",
            "error: train.max_step: unknown key -> did you mean 'max_steps'?",
            "error: --output: page.pdf is no name of a page -> end it in .html",
            "error: --only: there is no equality 'zero4' of this config -> did you mean",
            "rows.jsonl: no row has the column 'lable' -> did you mean 'label'?",
            "held.jsonl: no row has the column 'lable' -> did you mean 'label'?",
            "error: model.path: there is no model folder ./m",
            changes={**M, "train.max_step": 4, "data.completion": " {lable}"},
            command=(*COMMAND, "--only", "zero4", "--output", "page.pdf"),
        ),
        bad(
            "a page in a folder that is not there",
            "--output: there is no folder ",
            command=(*COMMAND, "-o", "a/b.html"),
        ),
        bad(
            "a stage that has no twins",
            "error: stage: quantize has no twins -> verify a config of sft, reward, classify, dpo, ppo, rl, distill",
            text=json.dumps(QUANTIZE),
            command=COMMAND,
        ),
        bad(
            "an adapter that is trained further",
            "error: model.path: is an adapter that is trained further, which has no twin",
            changes={"model.path": "adapter"},
            prepare=adapter,
            command=COMMAND,
        ),
    ]
}
