"""A trained model goes in; its folder `model/` with a card, the loss curve, and last the manifest come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.files import folder_aside, write_json, write_text
from scaleup.artifacts.train_state import TrainState
from scaleup.config.stages.base import SupervisedConfig
from scaleup.distributed.runtime import is_partly_frozen
from scaleup.models.adapters import is_adapted, save_adapter, save_over_base
from scaleup.models.generation import save_tokenizer
from scaleup.models.load import load_model
from scaleup.reports.training import model_card, plot_losses, read_metrics, summary
from scaleup.train.job import Job


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
    config, run, state = job.config, job.folder, trained.state
    job.runtime.progress.report("writing the model")
    write = result_writer(job, trained.wrapped, trained.part)
    if job.runtime.is_main:
        lines = read_metrics(run.metrics_file)
        metrics = summary(lines, state, trained.left_out) | dict(more_metrics or {})
        with folder_aside(run.model) as aside:
            write(aside)
            save_tokenizer(trained.tokenizer, aside)
            for name, values in (more_files or {}).items():
                write_json(aside / name, values)
            write_text(aside / "README.md", model_card(config, job.plan, metrics))
        plot_losses(lines, run.path / "loss.png", config.name, "pair" if config.stage == "reward" else "labelled token")
        job.finish(metrics, state.step)
    job.runtime.barrier()


def result_writer(job: Job[SupervisedConfig], model: Any, part: str | None = None) -> Callable[[Path], None]:
    """Gather what was trained (every rank must call it), and return what writes it into a folder, for rank 0:
    an adapter, or a whole model. `part` is the name of the module, within one that holds others, that is the result."""
    runtime = job.runtime
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
        base: Any = load_model(job.config.model, job.plan.model)
        # loading a decoder's classifier gives it a pad id: what is saved is what plain_padding left
        base.config.get_text_config().pad_token_id = whole.config.get_text_config().pad_token_id
        save_over_base(base, folder, trained)

    return write
