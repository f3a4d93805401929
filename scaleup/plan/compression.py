"""What cannot be exported or quantized, as far as it can be seen before anything loads."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from scaleup.artifacts.files import cache_folder
from scaleup.config.compression import ExportSettings
from scaleup.config.schema import RunConfig
from scaleup.config.stages import (
    CardConfig,
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    PPOConfig,
    QuantizeConfig,
)
from scaleup.errors import Problem
from scaleup.plan.compat import use_verdict
from scaleup.plan.facts import ModelFacts
from scaleup.plan.groups import device_of
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import adapter_base, adapter_folder, model_folder, saved_type

CONVERTER_FILE = "convert_hf_to_gguf.py"
NEEDED = {"gguf": ("xllamacpp",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
"""Packages that write a format, or read it back. They are in the extra `export`."""
LOW_PRECISION = ("bfloat16", "float16")


def converter_folder(settings: ExportSettings) -> Path:
    """Where llama.cpp's converter is looked for."""
    return Path(settings.converter).expanduser() if settings.converter else cache_folder() / "converter"


def quantization_of(path: str) -> str | None:
    """How the weights of a local model folder, or of an adapter's base there, are quantized (transformers'
    quant_method); None where they are not, or where it cannot be seen."""
    adapter = adapter_folder(path)
    try:
        folder = model_folder(str(adapter_base(adapter)) if adapter else path)
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
        settings = found.get("quantization_config")
        return str(settings.get("quant_method", "quantized")) if settings else None
    except (OSError, ValueError, AttributeError):
        return None


def export_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    if not isinstance(config, ExportConfig):
        return
    settings = config.export
    yield from _one_process(config, "an export is checked in float32", "export.dtype is what is written")
    yield from _format_problems(settings)
    folder = adapter_folder(config.model.path)
    if folder is None:
        if settings.trained_in is not None and Path(config.model.path).expanduser().is_dir():
            what = f"{config.model.path} is no adapter: nothing of it was trained on a quantized base"
            yield Problem("export.trained_in", what, "leave it out")
        return
    kind = saved_type(folder)
    found = use_verdict("export", kind)
    if found.status == "refused":
        yield Problem(found.where, f"{folder} is a {kind}: {found.reason}", found.remedy)


def _format_problems(settings: ExportSettings) -> Iterator[Problem]:
    kind = settings.format
    if kind != "safetensors" and settings.dtype != "auto":
        remedy = "use export.gguf_type" if kind == "gguf" else "leave it out: onnx is written in float32"
        yield Problem("export.dtype", "is of safetensors", remedy)
    if kind != "gguf" and settings.gguf_type != "f16":
        yield Problem("export.gguf_type", f"says nothing of {kind}", "leave it out, or use export.format: gguf")
    missing = [name for name in NEEDED.get(kind, ()) if importlib.util.find_spec(name) is None]
    if missing:
        what = f"{kind} needs {', '.join(missing)}, not installed here"
        yield Problem("export.format", what, "pip install -c constraints.txt 'scaleup[export]'")
    if kind == "gguf" and not (folder := converter_folder(settings)).joinpath(CONVERTER_FILE).is_file():
        what = f"llama.cpp's converter is not in {folder}"
        yield Problem("export.converter", what, "fetch it: make converter, or scripts/prepare_converter.py")


def quantize_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    if not isinstance(config, QuantizeConfig):
        return
    settings = config.quantize
    yield from _one_process(config, "results are compared in float32", "quantize.method is what is written")
    if (folder := adapter_folder(config.model.path)) is not None:
        what = f"{folder} is an adapter: its base would be quantized without it"
        yield Problem("model.path", what, "merge it first: scaleup export")
    if settings.group_size is not None and not settings.method.endswith("weight_only"):
        yield Problem("quantize.group_size", f"has no meaning for {settings.method}", "leave it out")
    if settings.skip is not None and settings.method in LOW_PRECISION:
        what = f"has no meaning for {settings.method}, which all weights are rounded to"
        yield Problem("quantize.skip", what, "leave it out")
    if settings.method == "int4_weight_only":
        has_kernels = importlib.util.find_spec("mslk") is not None
        if device_of(config.parallel, machine) == "cpu" or not has_kernels:
            what = "int4_weight_only needs a CUDA GPU and the package mslk: torchao has no 4-bit kernels for CPUs"
            yield Problem("quantize.method", what, "use int8_weight_only, or a machine that has both")


def quantized_model_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    """A quantized folder is evaluated, generated from and put on a card. Nothing else takes it."""
    beside = {"teacher": config.teacher} if isinstance(config, DistillConfig) else {}
    if isinstance(config, PPOConfig) and config.reward.model is not None:
        beside["reward.model"] = config.reward.model
    for key, model in beside.items():
        if (found := quantization_of(model.path)) is not None:
            what = f"{model.path} is quantized already ({found}), and strategies shard plain weights"
            yield Problem(f"{key}.path", what, "name the unquantized model")
    found = quantization_of(config.model.path)
    if found is None:
        return
    if isinstance(config, CardConfig):
        return
    if isinstance(config, EvaluateConfig | GenerateConfig):
        if config.quantization is not None:
            what = f"{config.model.path} is quantized already ({found})"
            yield Problem("quantization", what, "leave it out")
        return
    what = f"{config.model.path} is quantized already ({found}): stage {config.stage} needs the weights it was made of"
    yield Problem("model.path", what, "name the unquantized model")


def compression_facts_problems(config: RunConfig, facts: ModelFacts) -> Iterator[Problem]:
    """What only the model's own files can tell."""
    is_scored = facts.task == "sequence_classification"
    if isinstance(config, QuantizeConfig) and config.quantize.method == "float16" and "t5" in facts.model_type:
        yield Problem("quantize.method", "T5 models overflow in fp16", "use bfloat16 or int8_weight_only")
    if not isinstance(config, ExportConfig):
        return
    kind = config.export.format
    if kind == "safetensors" and is_scored:
        what = f"is a sequence classifier ({facts.architecture}), and safetensors are checked as language models"
        remedy = "use export.format: onnx, or its folder as it is: Transformers or PEFT loads it"
        yield Problem("model.path", what, remedy)
    elif kind == "gguf" and facts.task == "seq2seq_lm":
        what = f"{facts.architecture} is an encoder-decoder model. llama.cpp's converter takes T5 alone of these, and"
        what += " its server, which would read the file again, none"
        yield Problem("export.format", what, "use safetensors")
    elif kind == "gguf" and is_scored:
        yield Problem("export.format", f"{facts.architecture} scores texts, and a gguf is for writing them", "use onnx")
    elif kind == "onnx" and not is_scored:
        what = (
            f"{facts.architecture} is a {facts.task} model, and onnx is for encoders and classifiers: it would have no"
        )
        yield Problem("export.format", f"{what} cache to generate with", "use safetensors or gguf")
    elif kind == "onnx" and facts.pooling == "eos":
        what = f"{facts.architecture} looks for its eos token in each row, which no graph with free shapes can hold"
        yield Problem("export.format", what, "use a reward model of an encoder or a decoder")
    elif kind == "onnx" and facts.pooling == "last" and not (facts.labels or facts.adapter):
        yield Problem("model.path", f"({facts.architecture}) has no head that scores texts", "name a classifier")


def _one_process(config: RunConfig, why: str, instead: str) -> Iterator[Problem]:
    if config.parallel.num_processes > 1:
        article = "an export" if config.stage == "export" else "quantization"
        yield Problem("parallel.num_processes", f"{article} is one process", "leave it out")
    if config.mixed_precision != "no":
        yield Problem("mixed_precision", why, f"leave it out; {instead}")
