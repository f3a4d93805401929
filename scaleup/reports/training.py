"""Metrics of a training run go in; what people read of it comes out: a summary, the loss curve, the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

import scaleup
from scaleup.artifacts.metrics_log import logged_lines
from scaleup.artifacts.train_state import TrainState
from scaleup.config.stages.base import TrainingConfig
from scaleup.plan.types import Plan
from scaleup.reports.left_out import TOO_LONG, length_sentence
from scaleup.reports.plots import figure

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Maps a figure's name -> its value at each step (or rollout) at which it was logged."""


def read_series(file: Path) -> Series:
    """Returns the finite figures of a log, by name. A line that is half-written is passed over; no log has none."""
    series: dict[str, list[tuple[float, float]]] = {}
    for line in logged_lines(file):
        for key, value in line.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
                series.setdefault(key, []).append((float(line["step"]), value))
    return series


def training_seconds(series: Series) -> float | None:
    """Returns the seconds in which a run's steps (or rollouts) were done, as far as each was logged; None if not."""
    if rollouts := series.get("time/rollout"):
        return sum(seconds for _, seconds in rollouts) if len(rollouts) == rollouts[-1][0] else None
    tokens, rates = dict(series.get("num_tokens", ())), dict(series.get("tokens_per_second", ()))
    steps = sorted(tokens.keys() & rates.keys())
    counts = pairwise([0.0, *(tokens[step] for step in steps)])
    seconds = [(now - before) / rates[step] for step, (before, now) in zip(steps, counts, strict=True) if rates[step]]
    return sum(seconds) if seconds else None


def summary(
    lines: list[dict[str, Any]], state: TrainState, left_out: Mapping[str, int], goes_by: str = "loss"
) -> dict[str, Any]:
    """Returns the metrics of a manifest: the last losses, the best value of what the run goes by, tokens, and rows that
    were left out, also by the reason."""
    losses = [line["loss"] for line in lines if "loss" in line]
    evaluations = [line["eval_loss"] for line in lines if "eval_loss" in line]
    return {
        "train_loss": losses[-1] if losses else None,
        "eval_loss": evaluations[-1] if evaluations else None,
        f"best_eval_{goes_by}": state.best_metric,
        "best_step": state.best_step,
        "num_tokens": state.num_tokens,
        "rows_left_out": sum(left_out.values()),
        **({"rows_too_long": left_out[TOO_LONG]} if left_out.get(TOO_LONG) else {}),
    }


def retained(lines: list[dict[str, Any]], last: int | None) -> dict[str, float]:
    """Returns the loss of each old task before training and at the step whose weights are the result:
    `retain/TASK/loss_before` and `retain/TASK/loss_after`."""
    found: dict[str, float] = {}
    for name, step in (("before", 0), ("after", last)):
        for line in (line for line in lines if line["step"] == step):
            losses = {key: value for key, value in line.items() if key.startswith(RETAIN) and key.endswith("/loss")}
            found |= {f"{key.removeprefix('eval/')}_{name}": value for key, value in losses.items()}
    return found


def plot_losses(lines: list[dict[str, Any]], file: Path, title: str, unit: str = "labelled token") -> None:
    """Draws training and validation loss by optimizer step into a PNG file. `unit` is what a loss is a mean over."""
    with figure(file, figsize=(7, 4)) as (_, axes):
        for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1)
        axes.set(xlabel="optimizer step", ylabel=f"loss (nats a {unit})", title=title)
        axes.grid(alpha=0.3)
        axes.legend()


RETAIN = "eval/retain/"
"""Begins the names of what is measured of old tasks."""

ENDS = """\
- ends of an answer: PEFT takes those of the base; those that were trained are set by
  `model.generation_config = GenerationConfig.from_pretrained("this folder")`"""


def model_card(config: TrainingConfig, plan: Plan, metrics: dict[str, Any]) -> str:
    """Returns the README of a model's folder: Markdown, with the metadata block that model hubs read."""
    base, group = config.model.path, plan.groups[0]
    data = ", ".join(f"{source.path} (weight {source.weight:g})" for source in config.data.train or [])
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["scaleup", config.stage]}
    ends = ""
    if plan.model.adapter or (config.adapter and config.adapter.type != "selective"):
        header |= {"library_name": "peft", "base_model": plan.model.location}
        ends = "" if plan.model.task == "sequence_classification" else f"\n{ENDS}"
    left_out = f"\n- left out: {sentence}" if (sentence := length_sentence(metrics, config.data.max_length)) else ""
    rows = "\n".join(f"| {key} | {value} |" for key, value in metrics.items() if value is not None)
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {config.name}

{plan.model.architecture} fine-tuned by scaleup {scaleup.__version__} (stage `{config.stage}`).

- base model: `{base}` ({plan.model.num_parameters:,} parameters, {plan.model.num_trainable_parameters:,} trained)
- training data: {data}{left_out}
- processes: {group.num_processes} ({group.strategy}, {group.device}, mixed precision {group.mixed_precision}){ends}

| metric | value |
|---|---|
{rows}

## Config

```yaml
{yaml.safe_dump(config.shown(exclude_defaults=True), sort_keys=False, allow_unicode=True).strip()}
```
"""
