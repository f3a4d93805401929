"""A model or an adapter goes in; a folder for other programs comes out: merged, checked, written, read again."""

from __future__ import annotations

import gc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.files import folder_aside, folder_bytes, write_text
from scaleup.compress.export import DTYPES, Check, from_trained, read_back, stored_dtype, whole_model, write_folder
from scaleup.compress.gguf import read_gguf, write_gguf
from scaleup.compress.onnx import read_graph, write_graph
from scaleup.compress.probes import Probe, drawn_probes, row_probes
from scaleup.config.stages.export import ExportConfig
from scaleup.data.chat import answer_ends
from scaleup.models.generation import save_tokenizer
from scaleup.models.load import load_tokenizer
from scaleup.reports.lineage import with_lineage
from scaleup.reports.model_cards import export_card
from scaleup.train.job import Job


def run(job: Job[ExportConfig]) -> None:
    config, runtime, facts, settings = job.config, job.runtime, job.plan.model, job.config.export
    tokenizer = load_tokenizer(config.model, facts.tokenizer_at)
    is_graph = settings.format == "onnx"
    rows = [] if is_graph else row_probes(config.data, settings.num_rows, tokenizer, facts)
    check = Check([*drawn_probes(facts), *rows], settings.tolerance, runtime.device)
    metrics: dict[str, Any] = {"format": settings.format, "tolerance": settings.tolerance}
    metrics |= {"trained_in": settings.trained_in, "sequences": len(check.probes), "rows": len(rows)}

    runtime.progress.report("merging" if facts.adapter else "loading the model")
    model, merged = whole_model(config, facts, check)
    metrics |= {"num_parameters": model.num_parameters(), **merged}
    facts = facts.model_copy(update={"architecture": type(model).__name__})  # of an encoder, without the head
    with folder_aside(job.folder.model) as aside:
        runtime.progress.report("writing the model")
        if settings.format == "safetensors":
            metrics |= _safetensors(job, model, tokenizer, aside, check)
        elif is_graph:
            metrics |= _onnx(job, model, tokenizer, aside)
        else:
            metrics |= _gguf(job, model, tokenizer, aside, check, rows)
        metrics["bytes"] = folder_bytes(aside)
        write_text(aside / "README.md", with_lineage(export_card(config, facts, metrics), job.folder))
    job.finish(metrics)


def _safetensors(
    job: Job[ExportConfig],
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    aside: Path,
    check: Check,
) -> dict[str, Any]:
    config, facts = job.config, job.plan.model
    dtype = stored_dtype(config, facts)
    written, true = write_folder(model, tokenizer, aside, DTYPES[dtype], config.export.max_shard_size, check)
    model.to("meta")  # its memory, before the next one is loaded
    gc.collect()
    job.runtime.progress.report("reading it again")
    written |= read_back(config.model, facts, aside, check, true)
    return {"dtype": dtype, **written, **from_trained(config, facts, check, true)}


def _gguf(
    job: Job[ExportConfig],
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    aside: Path,
    check: Check,
    rows: list[Probe],
) -> dict[str, Any]:
    settings = job.config.export
    with TemporaryDirectory(dir=aside.parent, prefix=".merged-") as merged:
        _, true = write_folder(model, tokenizer, Path(merged), DTYPES["float32"], settings.max_shard_size, check)
        more_ends = [token for token in answer_ends(tokenizer, model) if token != tokenizer.eos_token_id]
        write_gguf(Path(merged), settings, aside, job.config.name, more_ends)
    job.runtime.progress.report("reading it again")
    read = read_gguf(model, tokenizer, rows, settings, aside)
    return {"dtype": settings.gguf_type, **read, **from_trained(job.config, job.plan.model, check, true)}


def _onnx(job: Job[ExportConfig], model: Any, tokenizer: PreTrainedTokenizerBase, aside: Path) -> dict[str, Any]:
    model, facts = model.cpu(), job.plan.model
    write_graph(model, facts, aside)
    model.config.save_pretrained(aside)
    save_tokenizer(tokenizer, aside)
    job.runtime.progress.report("reading it again")
    return {"dtype": "float32", **read_graph(model, facts, aside, job.config.export.tolerance)}
