"""The rows of `benchmarks/gpu.py`: what differs from the baseline, on which shapes, and how large a run is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WIDTHS = {"vocab_size": 151_936, "num_key_value_heads": 2, "max_position_embeddings": 32_768}
SHAPES = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
LORA = {"adapter": {"type": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}}


@dataclass(frozen=True)
class Row:
    """One line of the ladder: what differs from the baseline, in our config and in TRL's."""

    name: str
    ours: dict[str, Any] = field(default_factory=dict)
    trl: dict[str, Any] | None = field(default_factory=dict)
    """Is None where TRL has no such thing."""
    needs: str = ""
    """Says what of TRL's the rehearsal leaves out."""


CHECKPOINTED = {"gradient_checkpointing": True}
LADDER = (
    Row("baseline"),
    Row("batches by length", {"train": "by tokens"}, {"train_sampling_strategy": "group_by_length"}),
    Row("gradient checkpointing", CHECKPOINTED, CHECKPOINTED),
    *(
        Row(f"attention: {name}", {"attention": name}, {"attn_implementation": name}, needs)
        for name, needs in {"eager": "", "flash_attention_2": "cuda", "flex_attention": "cuda"}.items()
    ),
    Row("torch.compile", {"torch_compile": True}, {"torch_compile": True}, "cuda"),
    Row("Liger", {"use_liger_kernel": True}, {"use_liger_kernel": True}, "cuda"),
    Row("8-bit AdamW", {"optimizer": "adamw_8bit"}, {"optim": "adamw_bnb_8bit"}),
    Row("LoRA", LORA, {"lora": True}),
    Row("LoRA on 8 bits", {**LORA, "quantization": "8bit"}, {"lora": True, "bits": 8}),
    Row("LoRA on 4 bits", {**LORA, "quantization": "4bit"}, {"lora": True, "bits": 4}),
)
ROLLOUTS = [f"{stage}, {engine}" for stage in ("PPO", "GRPO") for engine in ("Transformers", "vLLM")]


@dataclass(frozen=True)
class Size:
    """How large a run of the ladder is."""

    rows: int
    longest: int
    batch: int
    steps: int
    warm_up: int
    responses: int
    new_tokens: int


REAL = Size(rows=512, longest=1024, batch=8, steps=24, warm_up=6, responses=64, new_tokens=128)
SMALL = Size(rows=64, longest=64, batch=4, steps=6, warm_up=2, responses=8, new_tokens=6)
