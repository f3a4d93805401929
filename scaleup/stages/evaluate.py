"""Metrics of a model on held-out rows beside those of a baseline, or of a base beside those of its adapters."""

from __future__ import annotations

import json

from scaleup.artifacts.files import write_json, write_text
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages import EvaluateConfig
from scaleup.data.sources import read_examples, read_prompts
from scaleup.distributed.runtime import Runtime
from scaleup.evaluation.classification import evaluate_classifiers
from scaleup.evaluation.evaluate import Row, evaluate_models, reference
from scaleup.evaluation.preference import evaluate_preferences
from scaleup.evaluation.report import finish
from scaleup.plan.reward import holds_labels
from scaleup.plan.types import Plan
from scaleup.records.examples import Opening


def run(config: EvaluateConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    if plan.model.task == "sequence_classification" and holds_labels(config, config.evaluation.split):
        _run_classes(config, plan, runtime, folder)
        return
    if plan.model.task == "sequence_classification":
        _run_preferences(config, plan, runtime, folder)
        return
    examples = _rows(config)
    results = evaluate_models(config, plan, runtime, examples, folder.path / ".parts")
    if runtime.is_main:
        metrics = {name: result.metrics for name, result in results.items()}
        write_json(folder.path / "metrics.json", metrics)
        answers = {name: result.answers for name, result in results.items() if result.answers is not None}
        if answers:
            rows = [
                {"prompt": getattr(example, "prompt", None)}
                | ({"reference": reference(example)} if config.evaluation.needs_completions else {})
                | {name: given[index] for name, given in answers.items()}
                for index, example in enumerate(examples)
            ]
            write_text(folder.path / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        finish(folder, config.stage, config.name, metrics, None)
    runtime.barrier()


def _run_classes(config: EvaluateConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    """Of classifiers, on texts with a class."""
    metrics = evaluate_classifiers(config, plan, runtime)
    if runtime.is_main:
        write_json(folder.path / "metrics.json", metrics)
        finish(folder, config.stage, config.name, metrics, None)
    runtime.barrier()


def _rows(config: EvaluateConfig) -> list[Row]:
    split = config.evaluation.split
    rows: list[Row] = []
    for source in getattr(config.data, split):
        if config.evaluation.needs_completions:
            rows += read_examples(config.data, source, split)
        else:
            rows += [Opening(prompt) for prompt in read_prompts(config.data, source, split)]
    return rows[: config.evaluation.max_samples]


def _run_preferences(config: EvaluateConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    """Of reward models, on pairs."""
    results = evaluate_preferences(config, plan, runtime)
    if runtime.is_main:
        metrics = {name: found for name, (found, _) in results.items()}
        write_json(folder.path / "metrics.json", metrics)
        _, scored = results["model"]
        write_text(folder.path / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in scored))
        finish(folder, config.stage, config.name, metrics, None)
    runtime.barrier()
