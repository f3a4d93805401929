"""Models and held-out rows go in; metrics.json and predictions.jsonl come out, of a model beside its baseline, or of a
base beside its adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scaleup.artifacts.files import write_json, write_text
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.data.few_shot import asked_rows
from scaleup.evaluation.classification import evaluate_classifiers
from scaleup.evaluation.evaluate import Evaluation, Row, evaluate_models, reference
from scaleup.evaluation.implicit_reward import evaluate_likelihoods
from scaleup.evaluation.likelihood import prompt_of
from scaleup.evaluation.preference import evaluate_preferences
from scaleup.evaluation.scores import Scored, of_row
from scaleup.records.chats import as_written
from scaleup.records.examples import PlainText
from scaleup.records.format_rules import holds_labels, holds_pairs
from scaleup.train.job import Job


def run(job: Job[EvaluateConfig]) -> None:
    config, plan, runtime, folder = job.config, job.plan, job.runtime, job.folder
    if plan.model.task == "sequence_classification" and holds_labels(config.data, config.evaluation.split):
        _write_scored(job, evaluate_classifiers(job))
        return
    if plan.model.task == "sequence_classification":
        _write_scored(job, evaluate_preferences(job))
        return
    if config.evaluation.needs_completions and holds_pairs(config.data, config.evaluation.split):
        _write_scored(job, evaluate_likelihoods(job))
        return
    measured = config.evaluation
    asked = (config.data, measured.split, measured.needs_completions, measured.max_samples)
    examples = asked_rows(*asked) if measured.metrics else []
    results = evaluate_models(job, examples)
    if runtime.is_main:
        metrics = {name: result.metrics for name, result in results.items()}
        write_json(folder.path / "metrics.json", metrics)
        if examples:
            rows = _predictions(examples, results, measured.needs_completions)
            write_text(folder.path / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        shutil.rmtree(job.parts, ignore_errors=True)
        job.finish(metrics)
    runtime.barrier()


def _predictions(
    examples: Sequence[Row], results: Mapping[str, Evaluation], has_references: bool
) -> Iterator[dict[str, Any]]:
    """Yield each row with its number, its prompt and, by column, what was answered and how that scores. `scores` are in
    the order of all rows; a metric that needs a prompt leaves plain text out."""
    answers = {name: iter(result.answers) for name, result in results.items() if result.answers is not None}
    for number, example in enumerate(examples):
        if isinstance(example, PlainText):
            row: dict[str, Any] = {"text": example.text}
        else:
            row = as_written(prompt_of(example)) | ({"reference": reference(example)} if has_references else {})
            row |= {name: next(texts) for name, texts in answers.items()}
        yield {"id": number, **row, "scores": {name: result.of_row(number) for name, result in results.items()}}


def _write_scored(job: Job[EvaluateConfig], results: Mapping[str, Scored]) -> None:
    """Write what was measured of classifiers, reward models or pairs, and each row with what the models make of it."""
    folder = job.folder.path
    if job.runtime.is_main:
        metrics = {name: scored.metrics for name, scored in results.items()}
        write_json(folder / "metrics.json", metrics)
        write_text(folder / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in _scored_rows(results)))
        job.finish(metrics)
    job.runtime.barrier()


def _scored_rows(results: Mapping[str, Scored]) -> Iterator[dict[str, Any]]:
    """Yield each row with its number and, by column, what the model makes of it and how that scores."""
    for number, row in enumerate(results["baseline" if "baseline" in results else "model"].rows):
        outputs = {name: output for name, scored in results.items() if (output := scored.outputs[number]) is not None}
        scores = {name: of_row(scored.by_row, number) for name, scored in results.items()}
        yield {"id": number, **row, **outputs, "scores": scores}
