"""A model as a folder for others: an adapter merged into its base, the result checked, written, read again, checked."""

from __future__ import annotations

import gc
from typing import Any

from scaleup.artifacts.files import folder_aside, write_text
from scaleup.artifacts.run_folder import RunFolder
from scaleup.compress.card import export_card
from scaleup.compress.export import DTYPES, Check, from_trained, read_back, stored_dtype, whole_model, write_folder
from scaleup.compress.probes import drawn_probes, row_probes
from scaleup.config.stages import ExportConfig
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.report import finish
from scaleup.models.load import load_tokenizer
from scaleup.plan.types import Plan


def run(config: ExportConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    facts, settings = plan.model, config.export
    tokenizer = load_tokenizer(config.model, facts.tokenizer_location or facts.location)
    rows = row_probes(config.data, settings.num_rows, tokenizer, facts)
    check = Check([*drawn_probes(facts), *rows], settings.tolerance, runtime.device)
    dtype = stored_dtype(config, facts)
    metrics: dict[str, Any] = {"format": settings.format, "dtype": dtype, "tolerance": settings.tolerance}
    metrics |= {"trained_in": settings.trained_in, "sequences": len(check.probes), "rows": len(rows)}

    runtime.progress.report("merging" if facts.adapter else "loading the model")
    model, found = whole_model(config, facts, check)
    metrics |= {"num_parameters": model.num_parameters(), **found}
    with folder_aside(folder.model) as aside:
        runtime.progress.report("writing the model")
        found, true = write_folder(model, tokenizer, aside, DTYPES[dtype], check)
        del model
        gc.collect()  # before the next one is loaded
        runtime.progress.report("reading it again")
        metrics |= found | read_back(config.model, facts, aside, check, true)
        metrics |= from_trained(config, facts, check, true)
        write_text(aside / "README.md", export_card(config, facts, metrics))
    finish(folder, config.stage, config.name, metrics, None)
