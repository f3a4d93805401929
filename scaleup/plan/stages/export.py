"""This module plans exports: what cannot be written in a format is refused, as far as it can be seen before anything
loads."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from scaleup.config.data import RowFormat
from scaleup.config.fields import MAX_SHARD_SIZE
from scaleup.config.stages.export import ExportConfig, ExportSettings
from scaleup.errors import Problem
from scaleup.plan.compat import use_verdict
from scaleup.plan.facts import ModelFacts, ModelRequest
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import CONVERTER_FILE, adapter_folder, converter_folder, saved_type
from scaleup.plan.rules import is_t5, one_process, t5_in_fp16
from scaleup.plan.stages.base import Rows, StagePlanner

NEEDED = {"gguf": ("xllamacpp",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
"""Maps a format -> the packages that write it, or read it back. They are in the extra of its name."""


class ExportPlanner(StagePlanner[ExportConfig]):
    shows = "export"
    takes_classifiers = True

    def splits(self, config: ExportConfig) -> dict[str, Rows]:
        needs = config.export.num_rows and config.export.format != "onnx"
        return {"test": "completions"} if config.data.test and needs else {}

    def max_rows(self, config: ExportConfig) -> int | None:
        return config.export.num_rows

    def problems(self, config: ExportConfig, machine: Machine) -> Iterator[Problem]:
        yield from export_problems(config)
        yield from super().problems(config, machine)

    def models(self, config: ExportConfig) -> dict[str, ModelRequest]:
        models = super().models(config)
        takes = config.export.format == "onnx"
        return models | {"model": models["model"].model_copy(update={"takes_encoders": takes})}

    def length_problems(self, config: ExportConfig, facts: ModelFacts, where: str) -> Iterator[Problem]:
        """Yields T5's refusal alone: of a row an export takes what there are positions for."""
        if config.export.dtype == "float16" and is_t5(facts.model_type):
            yield t5_in_fp16("export.dtype")

    def task_problems(
        self, config: ExportConfig, facts: ModelFacts, where: str, forms: list[RowFormat]
    ) -> Iterator[Problem]:
        yield from format_facts_problems(config, facts)


def export_problems(config: ExportConfig) -> Iterator[Problem]:
    """Yields what cannot be written, and problems of an adapter to merge."""
    settings = config.export
    yield from one_process(config, "an export", "an export is checked in float32", "export.dtype is what is written")
    yield from _format_problems(settings)
    folder = adapter_folder(config.model.path)
    if folder is None:
        if settings.trained_in is not None and Path(config.model.path).expanduser().is_dir():
            what = f"{config.model.path} is no adapter: nothing of it was trained on a quantized base"
            yield Problem("export.trained_in", what, "leave it out")
        return
    kind = saved_type(folder)
    verdict = use_verdict("export", kind)
    if verdict.status == "refused":
        yield Problem(verdict.where, f"{folder} is a {kind}: {verdict.reason}", verdict.remedy)


def _format_problems(settings: ExportSettings) -> Iterator[Problem]:
    kind = settings.format
    if kind != "safetensors" and settings.dtype != "auto":
        remedy = "use export.gguf_type" if kind == "gguf" else "leave it out: onnx is written in float32"
        yield Problem("export.dtype", "is of safetensors", remedy)
    if kind != "safetensors" and settings.max_shard_size != MAX_SHARD_SIZE:
        yield Problem("export.max_shard_size", "is of safetensors", "leave it out")
    if kind != "gguf" and settings.gguf_type != "f16":
        yield Problem("export.gguf_type", f"says nothing of {kind}", "leave it out, or use export.format: gguf")
    missing = [name for name in NEEDED.get(kind, ()) if importlib.util.find_spec(name) is None]
    if missing:
        what = f"{kind} needs {', '.join(missing)}, not installed here"
        yield Problem("export.format", what, f"pip install 'scaleup[{kind}]'")
    if kind == "gguf" and not (folder := converter_folder(settings.converter)).joinpath(CONVERTER_FILE).is_file():
        what = f"llama.cpp's converter is not in {folder}"
        yield Problem("export.converter", what, "fetch it: make converter, or scripts/prepare_converter.py")


def format_facts_problems(config: ExportConfig, facts: ModelFacts) -> Iterator[Problem]:
    """Yields a model of another kind than the format is for."""
    is_scored = facts.task == "sequence_classification"
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


PLANNER = ExportPlanner()
