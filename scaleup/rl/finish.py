"""A trained policy goes in; the policy as an ordinary model or adapter, the values beside it, samples before and after,
reward against KL, and last the manifest come out."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.files import folder_aside, write_text
from scaleup.artifacts.metrics_log import logged_lines
from scaleup.artifacts.timeline import read_timelines
from scaleup.artifacts.train_state import TrainState
from scaleup.config.stages.rl import PolicyConfig
from scaleup.distributed.deferred import value_of
from scaleup.models.adapters import drop_snapshot, is_adapted, save_adapter
from scaleup.models.generation import save_tokenizer
from scaleup.models.load import load_model
from scaleup.models.saved import own_weights, save_model, write_safetensors
from scaleup.reports.lineage import with_lineage
from scaleup.reports.rl import plot_rewards, plot_timelines, rl_summary, sample_table
from scaleup.reports.training import model_card
from scaleup.train.job import Job

POLICY = "policy."
"""Is the prefix of the policy's parameters in `Policy`."""


def finish_rl(job: Job[PolicyConfig], model: Any, tokenizer: PreTrainedTokenizerBase, state: TrainState) -> None:
    """Write everything from rank 0; the other ranks wait for it. `model` is a prepared Policy."""
    config, plan, runtime, run = job.config, job.plan, job.runtime, job.folder
    runtime.progress.report("writing the model")

    def write(trained: dict[str, torch.Tensor]) -> None:
        lines = logged_lines(run.metrics_file)
        best = state.best_step if config.train.load_best_model_at_end else None
        metrics = rl_summary(lines, state, best)
        policy = {name.removeprefix(POLICY): part for name, part in trained.items() if name.startswith(POLICY)}
        values = {name: part for name, part in trained.items() if not name.startswith(POLICY)}
        whole = runtime.accelerator.unwrap_model(model, keep_fp32_wrapper=False).policy
        with folder_aside(run.model) as aside:
            if is_adapted(whole):
                drop_snapshot(whole)
                save_adapter(whole, aside, {name: value_of(part) for name, part in policy.items()})
            else:
                base = load_model(config.model, plan.model)
                save_model(base, aside, {**own_weights(base), **policy}, config.train.max_shard_size)
            save_tokenizer(tokenizer, aside)
            write_text(aside / "README.md", with_lineage(model_card(config, plan, metrics), run))
        if values:
            with folder_aside(run.path / "values") as aside:
                write_safetensors(aside / "values.safetensors", values)
        plot_rewards(lines, run.path / "reward.png", config.name)
        plot_timelines(read_timelines(run.timelines), run.path / "timeline.png", config.name)
        write_text(run.path / "samples.md", sample_table(run.path / "samples", best))
        job.finish(metrics, state.step)

    runtime.hand_out(model, write)
    runtime.barrier()
