"""A trained model goes in; its folder `model/` with a card, the loss curve, and last the manifest come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.files import folder_aside, write_json, write_text
from scaleup.artifacts.metrics_log import logged_lines
from scaleup.artifacts.train_state import TrainState
from scaleup.config.stages.base import SupervisedConfig
from scaleup.distributed.deferred import value_of
from scaleup.distributed.runtime import is_partly_frozen
from scaleup.models.adapters import is_adapted, save_adapter
from scaleup.models.generation import save_tokenizer
from scaleup.models.load import load_model
from scaleup.models.saved import own_weights, save_model, saved_buffers
from scaleup.reports.lineage import with_lineage
from scaleup.reports.training import model_card, plot_losses, retained, summary
from scaleup.train.job import Job

UNITS = {"reward": "pair", "dpo": "row", "classify": "row"}
"""Maps a stage -> what its loss is a mean over, if not labelled tokens."""


@dataclass(frozen=True)
class TrainedModel:
    """Holds what a training comes to, before it is written."""

    wrapped: Any
    """Is the model under the run's strategy."""
    tokenizer: PreTrainedTokenizerBase
    state: TrainState
    left_out: Mapping[str, int]
    """Counts the rows that were left out by the reason, e.g. their length."""
    part: str | None = None
    """Is the name of the module within the model that is the result; None: all of it."""


def finish_training(
    job: Job[SupervisedConfig],
    trained: TrainedModel,
    more_metrics: Mapping[str, Any] | None = None,
    more_files: Mapping[str, Any] | None = None,
) -> None:
    """Write model, card, plot and manifest from rank 0; the other ranks wait for it. `more_metrics` join those of the
    training, `more_files` (name -> JSON) the files of the model."""
    job.runtime.progress.report("writing the model")

    def write(weights: dict[str, torch.Tensor]) -> None:
        config, run, state = job.config, job.folder, trained.state
        lines = logged_lines(run.metrics_file)
        last = state.best_step if config.train.load_best_model_at_end else state.step
        metrics = (
            summary(lines, state, trained.left_out, config.train.metric_for_best_model)
            | retained(lines, last)
            | dict(more_metrics or {})
        )
        with folder_aside(run.model) as aside:
            write_result(job, trained.wrapped, weights, aside, trained.part)
            save_tokenizer(trained.tokenizer, aside)
            for name, values in (more_files or {}).items():
                write_json(aside / name, values)
            write_text(aside / "README.md", with_lineage(model_card(config, job.plan, metrics), run))
        plot_losses(lines, run.path / "loss.png", config.name, UNITS.get(config.stage, "labelled token"))
        job.finish(metrics, state.step)

    job.runtime.hand_out(trained.wrapped, write)
    job.runtime.barrier()


def write_result(
    job: Job[SupervisedConfig],
    model: Any,
    weights: Mapping[str, torch.Tensor],
    folder: Path,
    part: str | None = None,
) -> None:
    """Write what was trained into a folder: an adapter, or a whole model. `weights` are those of the trained parameters
    by name, deferred or not. `part` is the name of the module, within one that holds others, that is the result."""
    whole: Any = job.runtime.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if part is None and not is_partly_frozen(whole):
        save_model(whole, folder, {**weights, **saved_buffers(whole)}, job.config.train.max_shard_size)
        return
    if part is not None:
        whole, start = whole.get_submodule(part), f"{part}."
        weights = {name.removeprefix(start): weight for name, weight in weights.items() if name.startswith(start)}
    if is_adapted(whole):
        save_adapter(whole, folder, {name: value_of(weight) for name, weight in weights.items()})
        return
    # what was not trained is read again: it is not rounded then, whatever precision it was held in
    base: Any = load_model(job.config.model, job.plan.model)
    # loading a decoder's classifier gives it a pad id: what is saved is what plain_padding left
    base.config.get_text_config().pad_token_id = whole.config.get_text_config().pad_token_id
    save_model(base, folder, {**own_weights(base), **weights}, job.config.train.max_shard_size)
