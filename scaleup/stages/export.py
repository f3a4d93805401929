"""A model as a folder for others: an adapter merged into its base, the result checked, written, read again, checked."""

from __future__ import annotations

import gc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.files import folder_aside, write_text
from scaleup.artifacts.run_folder import RunFolder
from scaleup.compress.card import export_card, folder_bytes
from scaleup.compress.export import DTYPES, Check, from_trained, read_back, stored_dtype, whole_model, write_folder
from scaleup.compress.gguf import read_gguf, write_gguf
from scaleup.compress.onnx import read_graph, write_graph
from scaleup.compress.probes import Probe, drawn_probes, row_probes
from scaleup.config.stages import ExportConfig
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.report import finish
from scaleup.models.load import load_tokenizer
from scaleup.plan.types import Plan


def run(config: ExportConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    facts, settings = plan.model, config.export
    tokenizer = load_tokenizer(config.model, facts.tokenizer_location or facts.location)
    is_graph = settings.format == "onnx"
    rows = [] if is_graph else row_probes(config.data, settings.num_rows, tokenizer, facts)
    check = Check([*drawn_probes(facts), *rows], settings.tolerance, runtime.device)
    metrics: dict[str, Any] = {"format": settings.format, "tolerance": settings.tolerance}
    metrics |= {"trained_in": settings.trained_in, "sequences": len(check.probes), "rows": len(rows)}

    runtime.progress.report("merging" if facts.adapter else "loading the model")
    model, found = whole_model(config, facts, check)
    metrics |= {"num_parameters": model.num_parameters(), **found}
    facts = facts.model_copy(update={"architecture": type(model).__name__})  # of an encoder, without the head
    with folder_aside(folder.model) as aside:
        runtime.progress.report("writing the model")
        if settings.format == "safetensors":
            metrics |= _safetensors(config, plan, runtime, model, tokenizer, aside, check)
        elif is_graph:
            metrics |= _onnx(config, plan, runtime, model, tokenizer, aside)
        else:
            metrics |= _gguf(config, plan, runtime, model, tokenizer, aside, check, rows)
        metrics["bytes"] = folder_bytes(aside)
        write_text(aside / "README.md", export_card(config, facts, metrics))
    finish(folder, config.stage, config.name, metrics, None)


def _safetensors(
    config: ExportConfig,
    plan: Plan,
    runtime: Runtime,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    aside: Path,
    check: Check,
) -> dict[str, Any]:
    dtype = stored_dtype(config, plan.model)
    found, true = write_folder(model, tokenizer, aside, DTYPES[dtype], check)
    model.to("meta")  # its memory, before the next one is loaded
    gc.collect()
    runtime.progress.report("reading it again")
    found |= read_back(config.model, plan.model, aside, check, true)
    return {"dtype": dtype, **found, **from_trained(config, plan.model, check, true)}


def _gguf(
    config: ExportConfig,
    plan: Plan,
    runtime: Runtime,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    aside: Path,
    check: Check,
    rows: list[Probe],
) -> dict[str, Any]:
    settings = config.export
    with TemporaryDirectory(dir=aside.parent, prefix=".merged-") as merged:
        _, true = write_folder(model, tokenizer, Path(merged), DTYPES["float32"], check)
        write_gguf(Path(merged), settings, aside, config.name)
    runtime.progress.report("reading it again")
    found = read_gguf(model, tokenizer, rows, settings, aside)
    return {"dtype": settings.gguf_type, **found, **from_trained(config, plan.model, check, true)}


def _onnx(
    config: ExportConfig, plan: Plan, runtime: Runtime, model: Any, tokenizer: PreTrainedTokenizerBase, aside: Path
) -> dict[str, Any]:
    model = model.cpu()
    write_graph(model, plan.model, aside)
    model.config.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    runtime.progress.report("reading it again")
    return {"dtype": "float32", **read_graph(model, plan.model, aside, config.export.tolerance)}
