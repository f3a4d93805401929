"""A smaller model made of a larger one in one shot: measured, cut, written, read again, checked."""

from __future__ import annotations

import gc
from typing import Any

from scaleup.artifacts.files import folder_aside, write_text
from scaleup.artifacts.run_folder import RunFolder
from scaleup.compress.calibration import calibration_rows, in_batches
from scaleup.compress.card import prune_card
from scaleup.compress.cut import cut_parts, make_zeros
from scaleup.compress.export import DTYPES, Check, dtype_of_files, read_back, write_folder
from scaleup.compress.probes import drawn_probes
from scaleup.compress.sizes import cut_metrics, sizes_of
from scaleup.config.stages import PruneConfig
from scaleup.data.dataset import collator_for
from scaleup.data.sources import encode_source
from scaleup.data.tokenization import Encoder, Tokens
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.evaluate import mean_loss
from scaleup.evaluation.metrics import perplexity
from scaleup.evaluation.report import finish
from scaleup.models.adapted import load_finished
from scaleup.models.load import load_tokenizer, pad_token_id
from scaleup.plan.types import Plan

TOLERANCE = 1e-4
"""How far writing and reading may move a logit, as a share of the largest."""


def run(config: PruneConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    facts, settings = plan.model, config.prune
    runtime.progress.report("loading the model")
    tokenizer = load_tokenizer(config.model, facts.location)
    model = load_finished(config.model, facts, None, "no", runtime.device)
    encoder = Encoder(tokenizer, facts.task, config.data)
    collate = collator_for(
        facts.task, pad_token_id(tokenizer), getattr(model, "prepare_decoder_input_ids_from_labels", None)
    )
    rows = calibration_rows(config.data, encoder, settings.calibration_rows) if settings.needs_calibration else []
    batches = in_batches(rows, collate, settings.batch_size)
    held_out = _held_out(config, encoder)

    def measured(when: str) -> dict[str, Any]:
        runtime.progress.report(f"measuring {when}")
        found: dict[str, Any] = {**sizes_of(model, when)}
        if held_out:
            loss = mean_loss(runtime, model, tokenizer, facts.task, held_out, settings.batch_size)
            found |= {f"loss_{when}": loss, f"perplexity_{when}": perplexity(loss)}
        return found

    metrics = measured("before")
    runtime.progress.report("choosing what to cut")
    kept = cut_parts(runtime, model, settings, batches)
    if settings.sparsity_score == "sparsegpt" and settings.sparsity is not None:
        from scaleup.compress.sparsegpt import sparsify

        sparsify(model, in_batches(rows, collate, 1))
    elif settings.sparsity is not None:
        make_zeros(runtime, model, settings, batches)
    metrics |= measured("after") | cut_metrics(model, settings, kept)
    if runtime.is_main:
        dtype = dtype_of_files(config.model, facts)
        check = Check(drawn_probes(facts), TOLERANCE, runtime.device, "model.path", "written")
        with folder_aside(folder.model) as aside:
            runtime.progress.report("writing the model")
            found, true = write_folder(model, tokenizer, aside, DTYPES[dtype], check)
            del model
            gc.collect()  # before the next one is loaded
            runtime.progress.report("reading it again")
            metrics |= {"dtype": dtype, **found, **read_back(config.model, facts, aside, check, true)}
            write_text(aside / "README.md", prune_card(config, facts, metrics))
        finish(folder, config.stage, config.name, metrics, None)
    runtime.barrier()


def _held_out(config: PruneConfig, encoder: Encoder) -> list[Tokens]:
    return [row for source in config.data.test or [] for row in encode_source(config.data, source, "test", encoder)[0]]
