"""A config goes in; refusals come out of a run that needs an extra of the package, which `pip install scaleup` leaves
out."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from scaleup.config.run import RunConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import quantization_of

MODULES: dict[str, tuple[str, ...]] = {
    "train": ("torch", "transformers", "accelerate", "datasets", "peft"),
    "deepspeed": ("deepspeed",),
    "quantization": ("bitsandbytes", "torchao"),
    "gguf": ("xllamacpp",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "sparsegpt": ("modelopt",),
    "liger": ("liger_kernel",),
    "math": ("math_verify",),
    "eval": ("lm_eval",),
    "search": ("optuna",),
}
"""Maps each extra -> the modules that it brings, by the names they are imported with."""
ZERO = ("zero1", "zero2", "zero3")


class DataPlaneMissing(ScaleupError):
    """Tells that models cannot be described, nor anything run: only the control plane is installed."""


def missing_modules(extra: str) -> list[str]:
    """Returns the modules of an extra that are not installed here."""
    return [name for name in MODULES[extra] if importlib.util.find_spec(name) is None]


def remedy(extra: str) -> str:
    return f"pip install 'scaleup[{extra}]'"


def check_data_plane() -> None:
    """Raises DataPlaneMissing where torch, or what depends on it, is not installed."""
    if missing := missing_modules("train"):
        what = f"models are described, trained and measured with {', '.join(missing)}, not installed here"
        raise DataPlaneMissing.of("scaleup[train]", what, remedy("train"))


def extra_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    """Yields what the config needs of an extra that is not installed; nothing for a machine that is not this one."""
    if machine.is_described:
        return
    yield from strategy_problems(config.parallel.strategy)
    for reward in config.reward_groups:
        yield from strategy_problems(reward.source.parallel.strategy, f"{reward.key}.parallel")
    quantized = {"quantization": getattr(config, "quantization", None)}
    quantized |= {f"{reward.key}.quantization": reward.source.quantization for reward in config.reward_sources}
    for key, value in quantized.items():
        if value is not None and "bitsandbytes" in missing_modules("quantization"):
            yield Problem(key, f"{value} needs bitsandbytes, not installed here", remedy("quantization"))
    optimizer = getattr(getattr(config, "train", None), "optimizer", "")
    if optimizer == "adamw_8bit" and "bitsandbytes" in missing_modules("quantization"):
        what = f"{optimizer} needs bitsandbytes, not installed here"
        yield Problem("train.optimizer", what, remedy("quantization"))
    for reward in config.reward_sources:
        if reward.source.function == "builtin:math" and missing_modules("math"):
            what = "builtin:math needs math_verify, not installed here"
            yield Problem(f"{reward.key}.function", what, remedy("math"))
    if getattr(getattr(config, "evaluation", None), "tasks", None) and missing_modules("eval"):
        yield Problem("evaluation.tasks", "needs lm_eval, not installed here", remedy("eval"))
    made_by = quantization_of(config.model.path)
    if made_by in missing_modules("quantization"):
        what = f"{config.model.path} was quantized with {made_by}, not installed here"
        yield Problem("model.path", what, remedy("quantization"))
    method = getattr(getattr(config, "quantize", None), "method", "")
    if method.startswith("int") and "torchao" in missing_modules("quantization"):
        yield Problem("quantize.method", f"{method} needs torchao, not installed here", remedy("quantization"))


def strategy_problems(strategy: str, where: str = "parallel") -> Iterator[Problem]:
    """Yields the refusal of a strategy whose engine is not installed; `where` is the section's key."""
    if strategy in ZERO and missing_modules("deepspeed"):
        yield Problem(f"{where}.strategy", f"{strategy} needs deepspeed, not installed here", remedy("deepspeed"))
