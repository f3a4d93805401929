"""Mistakes about adapters that were trained already: exported, or side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.mistakes.adapters import LORA
from tests.e2e.mistakes.case import Prepare, bad

EXPORT = {"stage": "export", "train": None, "data": None}
SIDE_BY_SIDE = {"stage": "evaluate", "train": None, "data.test": "held.jsonl", "data.train": None}


def adapters(**settings: Mapping[str, Any]) -> Prepare:
    """A folder for each name, with the settings of a LoRA of the base in the folder `base` and these."""

    def prepare(folder: Path) -> None:
        (folder / "base").mkdir()
        (folder / "base/config.json").write_text('{"model_type": "llama", "hidden_size": 96, "vocab_size": 259}')
        (folder / "base/model.safetensors").write_text("weights")
        known = {"peft_type": "LORA", "base_model_name_or_path": str(folder / "base"), "task_type": "CAUSAL_LM"}
        for name, more in settings.items():
            (folder / name).mkdir()
            (folder / name / "adapter_config.json").write_text(
                json.dumps(known | {"target_modules": ["q_proj"], **more})
            )
            (folder / name / "adapter_model.safetensors").write_text("weights")

    return prepare


EXPORTS = [
    bad(
        "keys of an export",
        "error: export.format: 'pickle' is not valid -> use one of 'safetensors', 'gguf' or 'onnx'",
        "error: export.dtype: 'bf16' is not valid -> did you mean 'bfloat16'?",
        "error: export.tolerance: 0 should be greater than 0",
        "error: export.trained_on: unknown key -> did you mean 'trained_in'?",
        changes={
            **EXPORT,
            "export": {"format": "pickle", "dtype": "bf16", "tolerance": 0, "trained_on": "8bit"},
        },
        command=("export", "config.yaml"),
    ),
    bad(
        "an export in two processes and bf16",
        "error: parallel.num_processes: an export is one process",
        "error: mixed_precision: an export is checked in float32 -> leave it out; export.dtype is what is written",
        changes={**EXPORT, "parallel.num_processes": 2, "mixed_precision": "bf16"},
        command=("export", "config.yaml"),
    ),
    *(
        bad(
            f"an export of {kind}",
            f"/soft is a {kind}: it feeds the model more than its input",
            changes={**EXPORT, "model.path": "./soft"},
            prepare=adapters(soft={"peft_type": saved}),
            command=("export", "config.yaml"),
        )
        for kind, saved in (("prompt_tuning", "PROMPT_TUNING"), ("prefix", "PREFIX_TUNING"))
    ),
    bad(
        "whole weights that were trained on a quantized base",
        "/base is no adapter: nothing of it was trained on a quantized base",
        changes={**EXPORT, "model.path": "./base", "export.trained_in": "8bit"},
        prepare=adapters(),
        command=("export", "config.yaml"),
    ),
    bad(
        "a T5 to be written in fp16",
        "error: export.dtype: T5 models overflow in fp16 -> use bfloat16 or float32",
        changes={**EXPORT, "model.path": "builtin:tiny-t5", "export.dtype": "float16"},
        command=("export", "config.yaml"),
        asks=True,
    ),
    bad(
        "rows to check on that are not there",
        "hold.jsonl' does not exist -> did you mean 'held.jsonl'?",
        changes={"stage": "export", "train": None, "data.train": None, "data.test": "hold.jsonl"},
        command=("export", "config.yaml"),
    ),
    bad("an export of nothing", "error: runs/none: is no run folder", command=("export", "runs/none")),
    bad(
        "an export of an sft config",
        "error: config.yaml: has stage sft, not export -> name a finished run's folder",
        command=("export", "config.yaml"),
    ),
]

MANY = [
    bad(
        "names and paths of adapters",
        "error: adapters.a b: 'a b' should be letters, digits, '.', '_' and '-' only",
        "error: adapters.none: nowhere holds no adapter_config.json -> name the folder of an adapter",
        "error: adapters.baseline: the results have a 'baseline' already -> choose another name",
        "error: adapters.baseline: is the adapter that adapters.again names -> leave one out",
        "error: adapters.ia: is of kind IA3, and adapters.again of LORA: PEFT puts one kind on a base",
        "error: baseline: and adapters exclude each other: these are compared with their base -> leave it out",
        changes={
            **SIDE_BY_SIDE,
            "baseline": {"path": "builtin:tiny-llama"},
            "adapters": {"a b": "./one", "baseline": "./one", "again": "./one", "none": "nowhere", "ia": "./ia"},
        },
        prepare=adapters(one={}, ia={"peft_type": "IA3"}),
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "no adapters at all",
        "error: adapters: {} dictionary should have at least 1 item",
        changes={**SIDE_BY_SIDE, "adapters": {}},
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "adapters in each other's way",
        "error: adapters.one: has trained biases of the base, which the others would get too",
        "error: adapters.two: has trained lm_head whole, and adapters.three adapts it",
        "error: adapters.three: was begun with pissa_niter_4, which changes the base that the others stand on",
        changes={**SIDE_BY_SIDE, "adapters": {"one": "./one", "two": "./two", "three": "./three"}},
        prepare=adapters(
            one={"bias": "all"},
            two={"modules_to_save": ["lm_head"]},
            three={"target_modules": ["model.lm_head"], "init_lora_weights": "pissa_niter_4"},
        ),
        command=("evaluate", "config.yaml"),
    ),
    bad(
        "adapters on an adapter",
        "error: model.path: is an adapter itself (",
        changes={"stage": "generate", "train": None, "data": None, "model.path": "./one", "adapters": {"two": "./two"}},
        prepare=adapters(one={}, two={}),
        overrides=("generation.prompts=[a]",),
        command=("generate", "config.yaml"),
    ),
    bad(
        "adapters of another base, of which only its files can tell",
        "error: adapters.one: was trained on another base (",
        "error: adapters.two: was trained on another base (",
        changes={**SIDE_BY_SIDE, "adapters": {"one": "./one", "two": "./two"}},
        prepare=adapters(one={}, two={}),
        command=("evaluate", "config.yaml"),
        asks=True,
    ),
    bad(
        "going on from an adapter of another base",
        "/base) than builtin:tiny-llama: hidden_size is 96, not 64 -> name the base model that it was trained on",
        changes={"adapter": {**LORA, "path": "./one"}},
        prepare=adapters(one={}),
        asks=True,
    ),
]

CASES = {"export": EXPORTS, "several adapters": MANY}
