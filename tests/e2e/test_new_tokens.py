"""New tokens through the command line: learned by LoRA, written in answers, exported as one whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scaleup.artifacts.files import read_json
from tests.cli import run, scaleup

TOKENS = ["<tool>", "<yes>", "<no>"]
CONFIG: dict[str, Any] = {
    "stage": "sft",
    "name": "asks",
    "model": {"path": "builtin:tiny-qwen2", "new_tokens": TOKENS},
    "data": {
        "train": "rows.jsonl",
        "test": "rows.jsonl",
        "max_length": 32,
        "prompt": "{prompt} <tool>",
        "completion": "{answer}",
    },
    "adapter": {"type": "lora", "r": 16, "lora_alpha": 64, "target_modules": "all-linear"},
    "train": {"max_steps": 20, "learning_rate": 3e-3, "per_device_train_batch_size": 8},
    "parallel": {"strategy": "single", "device": "cpu"},
}


@pytest.mark.slow
def test_learned_by_lora_they_are_in_every_later_model(tmp_path: Path) -> None:
    """Plain Transformers on the exported folder has the loss that the evaluation of the adapter found."""
    rows = [{"prompt": "ab"[n % 2], "answer": TOKENS[1 + n % 2]} for n in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = run(CONFIG, cwd=tmp_path)
    plan, manifest = read_json(done / "plan.json"), read_json(done / "manifest.json")
    assert plan["notes"][0] == "new tokens: 3 (ids 259 to 261); the embeddings grow from 259 rows to 262"
    assert plan["model"]["vocab_size"] == 262
    assert manifest["metrics"]["num_tokens"] == 20 * 8 * 5, "a letter, a space, and 3 tokens: two of ours and eos"

    told = scaleup("evaluate", done, cwd=tmp_path)
    assert told.code == 0, told.stderr
    metrics = read_json(done / "evaluations/1/manifest.json")["metrics"]
    assert metrics["model"]["loss"] < metrics["baseline"]["loss"] - 1

    told = scaleup("export", done, cwd=tmp_path)
    assert told.code == 0, told.stderr
    folder = done / "exports/1/model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == 262
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    ids = [tokenizer(f"{row['prompt']} <tool>{row['answer']}<|im_end|>")["input_ids"] for row in rows]
    labels = [[-100] * 3 + row[3:] for row in ids]
    with torch.no_grad():
        loss = float(model(torch.tensor(ids), labels=torch.tensor(labels)).loss)
    assert loss == pytest.approx(metrics["model"]["loss"], rel=1e-5)
