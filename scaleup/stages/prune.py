"""A smaller model made of a larger one: measured, cut, written, read again, checked; and trained again, where asked."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import folder_aside, read_json, write_json, write_text
from scaleup.artifacts.run_folder import RunFolder
from scaleup.compress.calibration import calibration_rows, in_batches
from scaleup.compress.card import prune_card
from scaleup.compress.cut import cut_parts, make_zeros
from scaleup.compress.export import DTYPES, Check, dtype_of_files, read_back, write_folder
from scaleup.compress.probes import drawn_probes
from scaleup.compress.sizes import cut_metrics, sizes_of
from scaleup.compress.student import train_student
from scaleup.config.prune import PruneSettings
from scaleup.config.schema import ModelConfig
from scaleup.config.stages import DistillConfig, PruneConfig
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.held_out import held_out_metrics, held_out_rows
from scaleup.evaluation.report import finish, finish_training
from scaleup.models.adapted import load_finished
from scaleup.models.classifier import plain_padding
from scaleup.models.facts import model_facts
from scaleup.models.load import load_tokenizer
from scaleup.plan.facts import ModelFacts
from scaleup.plan.recovery import recovery_of, rounds_of
from scaleup.plan.types import Plan
from scaleup.train.fit import Stopped
from scaleup.train.reading import reading_of

TOLERANCE = 1e-4
"""How far writing and reading may move a logit, as a share of the largest."""


def run(config: PruneConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    if config.recovery is None:
        metrics = _cut(config, config.prune, config.model, plan.model, runtime, folder.model)
    else:
        metrics = _in_rounds(config, plan, runtime, folder)
    if runtime.is_main:
        finish(folder, config.stage, config.name, metrics, None)
    runtime.barrier()


def _in_rounds(config: PruneConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> dict[str, Any]:
    """Cut, recover, cut again: `distilled/1/pruned`, `distilled/1/trained`, `distilled/2/pruned` and so on, of which
    the last one's model is the run's. Then the control: the same without the teacher. What is whole is not made
    again."""
    assert config.recovery is not None and plan.model.parts is not None
    metrics: dict[str, Any] = {}
    last: dict[str, Any] = {}
    ends: dict[str, Path] = {}
    for branch in ("distilled", "control")[: 1 + config.recovery.control]:
        model, facts = config.model, plan.model
        for number, settings in enumerate(rounds_of(config.prune, plan.model.parts), 1):
            place = folder.path / branch / str(number)
            cut = folder.path / "distilled/1/pruned" if number == 1 else place / "pruned"  # the first cut is the same
            said = cut.with_suffix(".json")
            if not said.is_file():
                found = _cut(config, settings, model, facts, runtime, cut)
                if runtime.is_main:
                    write_json(said, found)
                runtime.barrier()
            last = read_json(said) if branch == "distilled" else last
            learner, trained = recovery_of(config, str(cut), branch == "distilled"), RunFolder(place / "trained")
            if not trained.manifest_file.is_file():
                _recover(learner, plan, runtime, trained, folder)
            model = learner.model.model_copy(update={"path": str(trained.model)})
            facts = model_facts(model)
            metrics |= _recovered(config, model, facts, runtime, f"{branch}_{number}")
        ends[branch] = trained.model
    first = read_json(folder.path / "distilled/1/pruned.json")
    metrics = {**last, **{key: first[key] for key in first if key.endswith("_before")}, **metrics}
    if runtime.is_main:
        since = f"and taught by it in {config.prune.rounds} round{'s' * (config.prune.rounds > 1)}"
        card = prune_card(config.name, config.prune, config.model.path, plan.model, metrics, since)
        with folder_aside(folder.model) as aside:
            shutil.copytree(ends["distilled"], aside, dirs_exist_ok=True)
            write_text(aside / "README.md", card)
    return metrics


def _recover(config: DistillConfig, plan: Plan, runtime: Runtime, folder: RunFolder, whole: RunFolder) -> None:
    """As stage distill, in a folder within the run's; a signal stops the whole run."""
    facts = model_facts(config.model)
    plan = plan.model_copy(update={"model": facts, "teacher": plan.model})
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        done = train_student(config, plan, runtime, folder)
    except Stopped:
        if runtime.is_main:
            write_json(whole.resumable_file, read_json(folder.resumable_file))
        raise
    finish_training(
        config, plan, runtime, folder, done.wrapped, done.tokenizer, done.state, done.num_dropped, part=done.part
    )
    del done
    runtime.accelerator.free_memory()  # the next round has models of its own


def _recovered(
    config: PruneConfig, model: ModelConfig, facts: ModelFacts, runtime: Runtime, name: str
) -> dict[str, float]:
    """What it is on data.test, if there is any."""
    reading = reading_of(facts, load_tokenizer(model, facts.location), config.data)
    if not (held_out := held_out_rows(config.data, reading.encoder)):
        return {}
    loaded = load_finished(model, facts, None, "no", runtime.device)
    return held_out_metrics(runtime, loaded, reading, held_out, config.prune.batch_size, name)


def _cut(
    config: PruneConfig, settings: PruneSettings, source: ModelConfig, facts: ModelFacts, runtime: Runtime, folder: Path
) -> dict[str, Any]:
    """One shot: load, measure, choose, cut, write, read again, check."""
    runtime.progress.report("loading the model")
    tokenizer = load_tokenizer(source, facts.location)
    model = load_finished(source, facts, None, "no", runtime.device)
    reading = reading_of(facts, tokenizer, config.data)
    encoder, collate = reading.encoder, reading.collator(model)
    rows = calibration_rows(config.data, encoder, settings.calibration_rows) if settings.needs_calibration else []
    batches = in_batches(rows, collate, settings.batch_size)
    held_out = held_out_rows(config.data, encoder)

    def measured(when: str) -> dict[str, Any]:
        found = held_out_metrics(runtime, model, reading, held_out, settings.batch_size, when)
        return {**sizes_of(model, when), **found}

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
        dtype = dtype_of_files(source, facts)
        check = Check(drawn_probes(facts, tokenizer), TOLERANCE, runtime.device, "model.path", "written")
        with folder_aside(folder) as aside:
            runtime.progress.report("writing the model")
            if facts.task == "sequence_classification":
                plain_padding(model, tokenizer)
            found, true = write_folder(model, tokenizer, aside, DTYPES[dtype], check)
            del model
            gc.collect()  # before the next one is loaded
            runtime.progress.report("reading it again")
            metrics |= {"dtype": dtype, **found, **read_back(source, facts, aside, check, true)}
            write_text(aside / "README.md", prune_card(config.name, settings, source.path, facts, metrics))
    runtime.barrier()
    return metrics
