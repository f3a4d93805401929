"""Base models whose matrices bitsandbytes keeps in 8 bits (LLM.int8, Dettmers et al. 2022) or 4 (nf4 with double
quantization, Dettmers et al. 2023). The head and what a model shares with its embeddings stay as they are."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from scaleup.config.adapters import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPUTE = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Mixed precision -> what products with 4-bit matrices are computed in."""


def loading_options(quantization: Quantization, mixed_precision: str, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` needs. Without the device, several processes would all load onto the first one."""
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else it says at every product that it rounds to float16
    settings: dict[str, Any] = {"load_in_8bit": True}
    if quantization == "4bit":
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": COMPUTE[mixed_precision],
        }
    return {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": str(device)}}


def keep_as_loaded(model: torch.nn.Module) -> None:
    """Never let bitsandbytes lay 4-bit weights out anew. On a CPU with avx512_bf16 the first forward of an evaluation
    would do so in place, after which gradients, merged and saved weights are wrong."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def quantized_shapes(shell: PreTrainedModel) -> dict[torch.nn.Parameter, tuple[int, ...]]:
    """The weights that loading would quantize, with the shape (rows, columns) they would have."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = [*get_keys_to_not_convert(shell), *(shell._keep_in_fp32_modules or [])]
    found: dict[torch.nn.Parameter, tuple[int, ...]] = {}
    for name, module in shell.named_modules():
        if should_convert_module(name, kept) and (type(module) is torch.nn.Linear or isinstance(module, Conv1D)):
            weight: Any = module.weight
            rows, columns = weight.shape
            found[weight] = (columns, rows) if isinstance(module, Conv1D) else (rows, columns)
    return found
