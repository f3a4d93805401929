"""What a finished training run leaves behind: `model/` with its card, the loss curve, and last the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase

import scaleup
from scaleup.artifacts.files import folder_aside, write_json, write_text
from scaleup.artifacts.manifest import Manifest, file_sizes, write_manifest
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages import SupervisedConfig, TrainingConfig
from scaleup.distributed.runtime import Runtime, is_partly_frozen
from scaleup.models.adapters import is_adapted, save_adapter, save_over_base
from scaleup.models.load import load_model
from scaleup.plan.types import Plan
from scaleup.train.state import TrainState


def finish_training(
    config: SupervisedConfig,
    plan: Plan,
    runtime: Runtime,
    run: RunFolder,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    state: TrainState,
    num_dropped: int,
    measured: Mapping[str, Any] | None = None,
    beside: Mapping[str, Any] | None = None,
    part: str | None = None,
) -> None:
    """Write model, card, plot and manifest from rank 0; the other ranks wait for it. `measured` goes with the metrics,
    `beside` (file name -> JSON) with the model, of which `part` may be all that counts."""
    runtime.progress.report("writing the model")
    write = result_writer(config, plan, runtime, model, part)
    if runtime.is_main:
        lines = read_metrics(run.metrics_file)
        metrics = summary(lines, state, num_dropped) | dict(measured or {})
        with folder_aside(run.model) as aside:
            write(aside)
            tokenizer.save_pretrained(aside)
            for name, values in (beside or {}).items():
                write_json(aside / name, values)
            write_text(aside / "README.md", model_card(config, plan, metrics))
        plot_losses(lines, run.path / "loss.png", config.name, "pair" if config.stage == "reward" else "labelled token")
        finish(run, config.stage, config.name, metrics, state.step)
    runtime.barrier()


def result_writer(
    config: SupervisedConfig, plan: Plan, runtime: Runtime, model: Any, part: str | None = None
) -> Callable[[Path], None]:
    """Gathers what was trained (every rank must call it), and gives what writes it into a folder, for rank 0:
    an adapter, or a whole model. `part` is the name of the module, within one that holds others, that is the result."""
    whole: Any = runtime.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if part is None and not is_partly_frozen(whole):
        return partial(whole.save_pretrained, state_dict=runtime.full_state(model))
    trained = runtime.trained_state(model)
    if part is not None:
        whole, start = whole.get_submodule(part), f"{part}."
        trained = {name.removeprefix(start): weight for name, weight in trained.items() if name.startswith(start)}
    if is_adapted(whole):
        return lambda folder: save_adapter(whole, folder, trained)

    def write(folder: Path) -> None:
        base: Any = load_model(config.model, plan.model)
        # loading a decoder's classifier gives it a pad id: what is saved is what plain_padding left
        base.config.get_text_config().pad_token_id = whole.config.get_text_config().pad_token_id
        save_over_base(base, folder, trained)

    return write


def finish(run: RunFolder, stage: str, name: str, metrics: dict[str, Any], num_steps: int | None) -> None:
    """The manifest: from here on the run is finished."""
    run.resumable_file.unlink(missing_ok=True)
    manifest = Manifest(
        stage=stage,
        name=name,
        scaleup_version=scaleup.__version__,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        num_steps=num_steps,
        metrics=metrics,
        files=file_sizes(run.path, "model", "metrics.jsonl", "metrics.json", "predictions.jsonl", "loss.png"),
    )
    write_manifest(run.manifest_file, manifest)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def summary(lines: list[dict[str, Any]], state: TrainState, num_dropped: int) -> dict[str, Any]:
    losses = [line["loss"] for line in lines if "loss" in line]
    evaluations = [line["eval_loss"] for line in lines if "eval_loss" in line]
    return {
        "train_loss": losses[-1] if losses else None,
        "eval_loss": evaluations[-1] if evaluations else None,
        "best_eval_loss": state.best_loss,
        "best_step": state.best_step,
        "num_tokens": state.num_tokens,
        "rows_left_out": num_dropped,
    }


def plot_losses(lines: list[dict[str, Any]], file: Path, title: str, unit: str = "labelled token") -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), dpi=120)
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1)
    axes.set(xlabel="optimizer step", ylabel=f"loss (nats a {unit})", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    aside = file.with_name(f".{file.name}.tmp")
    figure.savefig(aside, format="png")
    aside.replace(file)
    pyplot.close(figure)


def model_card(config: TrainingConfig, plan: Plan, metrics: dict[str, Any]) -> str:
    """Markdown with the metadata block that model hubs read."""
    base, group = config.model.path, plan.groups[0]
    data = ", ".join(f"{source.path} (weight {source.weight:g})" for source in config.data.train or [])
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["scaleup", config.stage]}
    if plan.model.adapter or (config.adapter and config.adapter.type != "selective"):
        header |= {"library_name": "peft", "base_model": plan.model.location}
    rows = "\n".join(f"| {key} | {value} |" for key, value in metrics.items() if value is not None)
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {config.name}

{plan.model.architecture} fine-tuned by scaleup {scaleup.__version__} (stage `{config.stage}`).

- base model: `{base}` ({plan.model.num_parameters:,} parameters, {plan.model.num_trainable_parameters:,} trained)
- training data: {data}
- processes: {group.num_processes} ({group.strategy}, {group.device}, mixed precision {group.mixed_precision})

| metric | value |
|---|---|
{rows}

## Config

```yaml
{yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True).strip()}
```
"""
