"""A model goes in; a smaller one comes out: measured, cut, written, read again, checked, and trained again if the
config has a recovery."""

from __future__ import annotations

import gc
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import folder_aside, read_json, write_json, write_text
from scaleup.artifacts.run_folder import RunFolder
from scaleup.compress.calibration import calibration_rows, in_batches
from scaleup.compress.cut import cut_metrics, cut_parts, make_zeros, sizes_of, sparsify
from scaleup.compress.export import DTYPES, Check, dtype_of_files, read_back, write_folder
from scaleup.compress.probes import drawn_probes
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.distill import DistillConfig
from scaleup.config.stages.prune import PruneConfig, PruneSettings
from scaleup.describe.model import model_facts
from scaleup.distill.train import train_student
from scaleup.evaluation.held_out import held_out_metrics, held_out_rows
from scaleup.models.adapted import load_finished
from scaleup.models.classifier import plain_padding
from scaleup.models.load import load_tokenizer
from scaleup.plan.facts import ModelFacts
from scaleup.reports.lineage import with_lineage
from scaleup.reports.model_cards import prune_card
from scaleup.train.finish import finish_training
from scaleup.train.fit import Stopped
from scaleup.train.job import Job
from scaleup.train.reading import reading_of

TOLERANCE = 1e-4
"""Bounds how far writing and reading may move a logit, as a share of the largest."""


def run(job: Job[PruneConfig]) -> None:
    config = job.config
    if config.recovery is None:
        metrics = _cut(job, config.prune, config.model, job.plan.model, job.folder.model)
    else:
        metrics = _in_rounds(job)
    if job.runtime.is_main:
        job.finish(metrics)
    job.runtime.barrier()


def _in_rounds(job: Job[PruneConfig]) -> dict[str, Any]:
    """Cut, recover, cut again: `distilled/1/pruned`, `distilled/1/trained`, `distilled/2/pruned` and so on, of which
    the last one's model is the run's. Then the control: the same without the teacher. What is whole is not made
    again."""
    config, plan, runtime, folder = job.config, job.plan, job.runtime, job.folder
    assert config.recovery is not None and plan.model.parts is not None
    metrics: dict[str, Any] = {}
    last: dict[str, Any] = {}
    ends: dict[str, Path] = {}
    for branch in ("distilled", "control")[: 1 + config.recovery.control]:
        model, facts = config.model, plan.model
        for number, settings in enumerate(config.prune.in_rounds(plan.model.parts.sizes), 1):
            place = folder.path / branch / str(number)
            cut = folder.path / "distilled/1/pruned" if number == 1 else place / "pruned"  # the first cut is the same
            report = cut.with_suffix(".json")
            if not report.is_file():
                numbers = _cut(job, settings, model, facts, cut)
                if runtime.is_main:
                    write_json(report, numbers)
                runtime.barrier()
            last = read_json(report) if branch == "distilled" else last
            learner, trained = config.as_distillation(str(cut), branch == "distilled"), RunFolder(place / "trained")
            if not trained.manifest_file.is_file():
                _recover(Job(learner, plan, runtime, trained), whole=folder)
            model = learner.model.model_copy(update={"path": str(trained.model)})
            facts = model_facts(model)
            metrics |= _recovered(job, model, facts, f"{branch}_{number}")
        ends[branch] = trained.model
    first = read_json(folder.path / "distilled/1/pruned.json")
    metrics = {**last, **{key: first[key] for key in first if key.endswith("_before")}, **metrics}
    if runtime.is_main:
        since = f"and taught by it in {config.prune.rounds} round{'s' * (config.prune.rounds > 1)}"
        card = prune_card(config.name, config.prune, config.model.path, plan.model, metrics, since)
        with folder_aside(folder.model) as aside:
            shutil.copytree(ends["distilled"], aside, dirs_exist_ok=True)
            write_text(aside / "README.md", with_lineage(card, folder))
    return metrics


def _recover(job: Job[DistillConfig], whole: RunFolder) -> None:
    """Train as stage distill does, in a folder within the run's (`whole`); a signal stops the whole run."""
    facts = model_facts(job.config.model)
    job = replace(job, plan=job.plan.model_copy(update={"model": facts, "models": {"teacher": job.plan.model}}))
    job.folder.path.mkdir(parents=True, exist_ok=True)
    try:
        trained = train_student(job)
    except Stopped:
        if job.runtime.is_main:
            write_json(whole.resumable_file, read_json(job.folder.resumable_file))
        raise
    finish_training(job, trained)
    del trained
    job.runtime.accelerator.free_memory()  # the next round has models of its own


def _recovered(job: Job[PruneConfig], model: ModelConfig, facts: ModelFacts, name: str) -> dict[str, float]:
    """Measure a recovered model on data.test, if there is any."""
    config, runtime = job.config, job.runtime
    reading = reading_of(facts, load_tokenizer(model, facts.location), config.data)
    if not (held_out := held_out_rows(config.data, reading.encoder)):
        return {}
    loaded = load_finished(model, facts, None, "no", runtime.device)
    return held_out_metrics(runtime, loaded, reading, held_out, config.prune.batch_size, name)


def _cut(
    job: Job[PruneConfig], settings: PruneSettings, source: ModelConfig, facts: ModelFacts, folder: Path
) -> dict[str, Any]:
    """Prune once: load, measure, choose, cut, write, read again, check."""
    config, runtime = job.config, job.runtime
    runtime.progress.report("loading the model")
    tokenizer = load_tokenizer(source, facts.location)
    model = load_finished(source, facts, None, "no", runtime.device)
    reading = reading_of(facts, tokenizer, config.data)
    encoder, collate = reading.encoder, reading.collator(model)
    rows = calibration_rows(config.data, encoder, settings.calibration_rows) if settings.needs_calibration else []
    batches = in_batches(rows, collate, settings.batch_size)
    held_out = held_out_rows(config.data, encoder)

    def measured(when: str) -> dict[str, Any]:
        quality = held_out_metrics(runtime, model, reading, held_out, settings.batch_size, when)
        return {**sizes_of(model, when), **quality}

    metrics = measured("before")
    runtime.progress.report("choosing what to cut")
    kept = cut_parts(runtime, model, settings, batches)
    if settings.sparsity_score == "sparsegpt" and settings.sparsity is not None:
        sparsify(model, in_batches(rows, collate, 1))
    elif settings.sparsity is not None:
        make_zeros(runtime, model, settings, batches)
    metrics |= measured("after") | cut_metrics(model, settings, kept)
    if runtime.is_main:
        dtype = dtype_of_files(source, facts)
        check = Check(drawn_probes(facts, tokenizer), TOLERANCE, runtime.device, "model.path", "written")
        with folder_aside(folder) as aside:
            runtime.progress.report("writing the model")
            if facts.task == "sequence_classification":
                plain_padding(model, tokenizer)
            written, true = write_folder(model, tokenizer, aside, DTYPES[dtype], settings.max_shard_size, check)
            del model
            gc.collect()  # before the next one is loaded
            runtime.progress.report("reading it again")
            metrics |= {"dtype": dtype, **written, **read_back(source, facts, aside, check, true)}
            card = prune_card(config.name, settings, source.path, facts, metrics)
            write_text(aside / "README.md", with_lineage(card, job.folder))
    runtime.barrier()
    return metrics
