"""A config and the machine go in; refusals come out of kernels that a run asks for and cannot have: another attention
than Transformers' choice, compiled layers, Liger's. What attention a model's class lacks is told where its shell is
built (describe/shell.py)."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping

from scaleup.config.run import RunConfig
from scaleup.config.schema import ModelConfig, ParallelConfig
from scaleup.config.stages.sft import SFTConfig
from scaleup.errors import Problem
from scaleup.plan.compat import adapter_of
from scaleup.plan.extras import missing_modules, remedy
from scaleup.plan.facts import ModelFacts
from scaleup.plan.groups import device_of
from scaleup.plan.machine import Machine

FLASH = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
"""Maps an attention that is a package's own -> its module, and the package that brings it."""
ON_GPUS = (*FLASH, "flex_attention")
COMPILED = {"strategies": ("single", "ddp"), "adapters": ("full", "selective", "lora")}
"""Names what compiled layers train with: a test shows each to be the run without them."""
# fmt: off
LIGER = frozenset({
    "deepseek_v3", "exaone4", "gemma", "gemma2", "gemma3_text", "glm4", "gpt_oss", "granite", "hunyuan_v1_dense",
    "llama", "ministral", "mistral", "mixtral", "nemotron", "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "qwen3_moe",
    "smollm3",
})
# fmt: on
"""Names the causal families that Liger has kernels for (MODEL_TYPE_TO_APPLY_LIGER_FN); others it passes over without
a word."""


def attention_problems(config: RunConfig, machine: Machine, models: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    """Yields the attention of each of a run's `models`, by config key, that its device, its precision or what is
    installed does not have."""
    groups = {f"{reward.key}.model": reward.source for reward in config.reward_groups}
    for where, model in models.items():
        wanted, key = model.attn_implementation, f"{where}.attn_implementation"
        if wanted not in ON_GPUS:
            continue
        own: ParallelConfig = groups[where].parallel if where in groups else config.parallel
        precision = groups[where].mixed_precision if where in groups else config.mixed_precision
        if device_of(own, machine) == "cpu":
            yield Problem(key, f"{wanted} needs a GPU, and this run is on the CPU", "use sdpa or eager")
        elif wanted in FLASH and not machine.is_described:
            module, package = FLASH[wanted]
            if importlib.util.find_spec(module) is None:
                remedy = f"pip install {package}, or use sdpa, which has kernels of its own"
                yield Problem(key, f"{wanted} needs {module}, not installed here", remedy)
        if wanted in FLASH and precision == "no":
            what = f"{wanted} has no kernel for float32, and mixed_precision is no"
            yield Problem(key, what, "use mixed_precision: bf16, or sdpa")


def kernel_problems(config: SFTConfig, machine: Machine) -> Iterator[Problem]:
    """Yields what compiled layers and Liger's kernels do not go with."""
    is_cpu = device_of(config.parallel, machine) == "cpu"
    if config.torch_compile:
        yield from _compile_problems(config)
        if not machine.is_described:
            yield from _compiler_problems(is_cpu)
    if not config.use_liger_kernel:
        return
    key = "use_liger_kernel"
    if is_cpu:
        yield Problem(key, "Liger's kernels need a GPU, and this run is on the CPU", "leave it out")
    elif not machine.is_described and missing_modules("liger"):
        yield Problem(key, "needs liger_kernel, not installed here", remedy("liger"))
    if config.torch_compile:
        yield Problem(key, "and torch_compile have not been tried together", "use one of them")
    if config.compares_with_base:
        what = "is not supported with regularization.type: kl, whose copy of the model would be left as it is"
        yield Problem(key, what, "leave it out, or use ewc or l2sp")


def _compile_problems(config: SFTConfig) -> Iterator[Problem]:
    key, strategy, adapter = "torch_compile", config.parallel.strategy, adapter_of(config)
    if strategy not in COMPILED["strategies"]:
        why = "may choose one that shards" if strategy == "auto" else "changes layers that are compiled, as it shards"
        yield Problem(key, f"is for single and ddp, and {strategy} {why}", "use ddp, or leave it out")
    if config.quantization is not None:
        yield Problem(key, f"is not supported with quantization: {config.quantization}", "leave one of them out")
    elif adapter not in COMPILED["adapters"]:
        yield Problem(key, f"is not supported with {adapter}", "use lora, or leave it out")
    if config.regularization is not None:
        yield Problem(key, "is not supported with regularization", "leave one of them out")
    if config.train.eval_metrics:
        what = "is not supported with train.eval_metrics: of an answer each token has a length of its own"
        yield Problem(key, what, "leave one of them out")


def _compiler_problems(is_cpu: bool) -> Iterator[Problem]:
    """Yields the lack of what makes machine code of a graph."""
    compiler = os.environ.get("CXX") or "g++"
    if is_cpu and shutil.which(compiler) is None:
        yield Problem("torch_compile", f"needs a C++ compiler, and there is no {compiler}", "install one, or set CXX")
    if not is_cpu and importlib.util.find_spec("triton") is None:
        yield Problem("torch_compile", "needs triton, not installed here", "pip install triton")


def liger_family_problems(config: SFTConfig, facts: ModelFacts) -> Iterator[Problem]:
    """Yields a family that Liger has no kernels for."""
    if config.use_liger_kernel and not (facts.task == "causal_lm" and facts.model_type in LIGER):
        what = f"Liger has no kernels for {facts.architecture} ({facts.model_type})"
        yield Problem("use_liger_kernel", what, "leave it out")


def kernel_notes(config: SFTConfig) -> Iterator[str]:
    """Yields what the plan's peak and this project's tests leave open."""
    if config.torch_compile:
        yield "torch_compile: activations are counted as without it; compiled layers may keep fewer"
    if config.use_liger_kernel:
        yield "use_liger_kernel: activations are counted as without it; no test of this project has run it on a GPU"
