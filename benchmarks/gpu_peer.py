"""What `benchmarks/gpu.py` starts in processes of their own: writing a model of a shape with random weights, and TRL's
SFTTrainer on the rows of the ladder. Not to be called by hand.

    gpu_peer.py model   reads {"shape": {...}, "folder": "..."} from stdin
    gpu_peer.py trl     reads {"model", "rows", "settings", "cases": {NAME: {...}}} from stdin, prints a line of JSON
                        for each case: {"name", "tokens", "seconds", "peak_mib"} or {"name", "error"}"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")


def write_model(shape: dict[str, int], folder: str) -> None:
    """Write a Qwen2 of these sizes, in bfloat16, with the byte-level tokenizer of our built-in models."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from scaleup.models.sources import materialize

    tokenizer = AutoTokenizer.from_pretrained(materialize("builtin:tiny-qwen2"))
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**shape, **ids, tie_word_embeddings=True)).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(model: str, rows: str, settings: dict[str, Any], case: dict[str, Any]) -> dict[str, float | None]:
    """Train by TRL as a case says; the real tokens and the seconds of the steps after the warm-up, and the peak."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    case, warm_up, on_gpu = dict(case), settings.pop("warm_up"), torch.cuda.is_available()
    bits, is_lora = case.pop("bits", None), case.pop("lora", False)
    options: dict[str, Any] = {"attn_implementation": case.pop("attn_implementation", None), "dtype": torch.float32}
    if bits:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
        options["device_map"] = {"": "cuda:0" if on_gpu else "cpu"}
    times: list[float] = []
    tokens: list[int] = []

    def note() -> None:
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            note()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            note()

    class Counted(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            tokens.append(int(inputs["attention_mask"].sum()))
            return super().training_step(model, inputs, *args, **kwargs)

    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        chosen = {"gradient_checkpointing": False, "bf16": True, "dataset_text_field": "text", **settings, **case}
        quiet = {"use_cpu": not on_gpu, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
        trainer = Counted(
            AutoModelForCausalLM.from_pretrained(model, **options),
            SFTConfig(folder, **chosen, **quiet),
            train_dataset=load_dataset("json", data_files=rows, split="train", cache_dir=folder),
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[Clock()],
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if is_lora else None,
        )
        trainer.train()
    seconds = [after - before for before, after in itertools.pairwise(times)]
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None
    return {"tokens": sum(tokens[warm_up:]), "seconds": sum(seconds[warm_up:]), "peak_mib": peak}


def main() -> None:
    asked = json.load(sys.stdin)
    if sys.argv[1] == "model":
        write_model(**asked)
        return
    for name, case in asked["cases"].items():
        try:
            found: dict[str, Any] = train(asked["model"], asked["rows"], dict(asked["settings"]), case)
        except Exception as error:  # a peer may fail in any way: its row says so
            found = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps({"name": name, **found}), flush=True)


if __name__ == "__main__":
    main()
