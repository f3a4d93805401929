"""This module loads base models whose matrices bitsandbytes keeps in 8 bits (LLM.int8, Dettmers et al. 2022) or 4 (nf4
with double quantization, Dettmers et al. 2023), and their shapes without storage. The head and what a model shares with
its embeddings stay as they are."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from scaleup.config.adapters import Quantization
from scaleup.distributed.deepspeed_ops import uncompiled
from scaleup.distributed.deferred import Deferred, deferred, value_of
from scaleup.models.classifier import UNQUANTIZED, is_sequence_classifier
from scaleup.models.stored import deferred_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPUTE = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Maps mixed precision to the dtype in which products are computed: with 4-bit matrices, and of a scorer."""


def import_bitsandbytes() -> None:
    """Imports bitsandbytes before PEFT and Transformers do. It has `torch.compile` wrap its fallbacks: importing the
    compiler takes longer than all else of it, and a 4-bit matrix of odd width would wait for minutes for what is quick
    as it is."""
    if "bitsandbytes" not in sys.modules:
        with uncompiled():
            importlib.import_module("bitsandbytes")


def loading_options(
    quantization: Quantization, mixed_precision: str, device: torch.device, task: str = "causal_lm"
) -> dict[str, Any]:
    """Returns the options that `from_pretrained` needs. Without the device, several processes would all load onto the
    first one."""
    import_bitsandbytes()
    from transformers import BitsAndBytesConfig

    settings: dict[str, Any] = {"load_in_8bit": True}
    if quantization == "4bit":
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": COMPUTE[mixed_precision],
        }
    if task == "sequence_classification":
        settings["llm_int8_skip_modules"] = list(UNQUANTIZED)  # of either kind: Transformers reads it for both
    return {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": str(device)}}


class Params4bit(Deferred):
    """Stands for a parameter of bitsandbytes' class of this name, by which PEFT knows it, until it is read."""

    @property
    def quant_state(self) -> Any:
        """Returns the scales. The quantized matrix stays from now on: who asks for them wants it next."""
        return cast("Any", self.source.kept()).quant_state


@contextmanager
def quantized_when_read() -> Iterator[None]:
    """Makes `from_pretrained` inside leave the matrices that it would quantize to 4 bits in their files: each is read
    and quantized when it is used, as the other weights are read then."""
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize

    before = Bnb4bitQuantize.convert
    Bnb4bitQuantize.convert = _convert_when_read
    try:
        with deferred_files():
            yield
    finally:
        Bnb4bitQuantize.convert = before


def _convert_when_read(operation: Any, input_dict: Mapping[str, Any], model: Any = None, **_: Any) -> dict[str, Any]:
    """Takes the place of the step of Transformers' loading that quantizes a matrix, or several, by their names."""
    from transformers.pytorch_utils import Conv1D

    converted = {}
    for name, given in input_dict.items():
        module = model.get_submodule(name.rpartition(".")[0])
        whole = given[0] if isinstance(given, list) else given
        whole = whole.T if issubclass(module.source_cls, Conv1D) else whole
        settings = dict(vars(module.weight))
        read = partial(_quantized, whole, settings)
        packed = deferred(read, (-(-whole.numel() // 2), 1), torch.uint8, whole.device, Params4bit)
        converted[name] = torch.nn.Parameter(packed, requires_grad=False)
        vars(converted[name]).update(settings)
        module._is_hf_initialized = True
    return converted


def _quantized(whole: torch.Tensor, settings: Mapping[str, Any]) -> Any:
    """Returns bitsandbytes' parameter of a matrix that is read now."""
    from bitsandbytes.nn import Params4bit as Quantized

    values = value_of(whole)
    return Quantized(values, requires_grad=False, **settings).to(values.device)


def keep_as_loaded(model: torch.nn.Module) -> None:
    """Keeps bitsandbytes from laying 4-bit weights out anew. On a CPU with avx512_bf16 the first forward of an
    evaluation would do so in place, after which gradients, merged and saved weights are wrong. And it keeps 8-bit
    matrices' scales."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, Linear8bitLt):
            module.register_forward_pre_hook(_keep_scales)


def _keep_scales(module: Any, inputs: Any) -> None:
    """Gives an 8-bit matrix its scales back. PEFT's DoRA reads the matrix in every pass, and on a CPU leaves it to be
    taken up anew, without the scales of its rows: the next pass would fail."""
    if module.weight.CB is not None and module.weight.SCB is None:
        module.weight.SCB = module.state.SCB


class QuantizedShell(torch.nn.Linear):
    """Stands, in a model without storage, for what loading would make of a matrix. Its passes take the memory that
    bitsandbytes' do on a CPU: the whole matrix for as long as a product lasts, and 8 bits keep their input although no
    gradient needs it."""

    def __init__(self, rows: int, columns: int, bias: torch.nn.Parameter | None, quantization: Quantization) -> None:
        super().__init__(columns, rows, bias=False, device="meta")
        self.weight.requires_grad_(False)
        self.bias = bias  # type: ignore[assignment]
        self.quantization = quantization

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.quantization == "8bit":
            return _Product.apply(x, self.weight, self.bias, True)
        compute = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return _Product.apply(x.to(compute), self.weight, self.bias, False).to(x.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, keeps: bool) -> Any:
        ctx.weight, ctx.dtype, ctx.kept = weight, x.dtype, x if keeps else None
        return torch.nn.functional.linear(x, torch.empty_like(weight, dtype=x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient.to(ctx.dtype) @ torch.empty_like(ctx.weight, dtype=ctx.dtype), None, None, None


def quantize_shell(shell: PreTrainedModel, quantization: Quantization) -> dict[torch.nn.Parameter, tuple[int, ...]]:
    """Puts a QuantizedShell wherever loading would quantize. Returns their weights, with their shapes (rows,
    columns)."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    heads = UNQUANTIZED if is_sequence_classifier(shell) else ()
    kept = [*(heads or get_keys_to_not_convert(shell)), *(shell._keep_in_fp32_modules or [])]
    shapes: dict[torch.nn.Parameter, tuple[int, ...]] = {}
    for name, module in list(shell.named_modules()):
        if should_convert_module(name, kept) and (type(module) is torch.nn.Linear or isinstance(module, Conv1D)):
            weight: Any = module.weight
            rows, columns = reversed(weight.shape) if isinstance(module, Conv1D) else weight.shape
            low: Any = QuantizedShell(rows, columns, module.bias, quantization)
            shell.set_submodule(name, low)
            shapes[cast("torch.nn.Parameter", low.weight)] = (rows, columns)
    return shapes
