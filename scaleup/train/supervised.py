"""Tokenized rows and an objective go in; a trained model comes out, by the one loop. All supervised stages share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from scaleup.artifacts.train_state import TrainState
from scaleup.config.adapters import AdaLoraAdapter
from scaleup.config.stages.base import SupervisedConfig
from scaleup.data.collate import Batch, Collator
from scaleup.data.dataset import TrainingData, train_loader
from scaleup.data.loader import Split, eval_batches
from scaleup.data.rows import Rows
from scaleup.distributed.engines import base_optimizer
from scaleup.distributed.runtime import seed_everything
from scaleup.errors import ScaleupError
from scaleup.models.adapters import is_adalora
from scaleup.train.adalora import RankAllocation
from scaleup.train.fit import Feed, Training, fit
from scaleup.train.job import Job
from scaleup.train.model import model_to_train
from scaleup.train.optim import build_optimizer, build_schedule
from scaleup.train.step import Objective
from scaleup.train.tally import Tally


@dataclass(frozen=True)
class Trained:
    model: Any
    wrapped: Any
    """Is the model under the run's strategy."""
    state: TrainState


def train_supervised(
    job: Job[SupervisedConfig],
    data: TrainingData,
    collator: Callable[[Any], Collator],
    objective: Objective,
    load: Callable[[], Any] | None = None,
    tally: Tally | None = None,
    feed: Callable[[Any, Any, Feed], Feed] | None = None,
) -> Trained:
    """Load the config's model, prepare it and fit it. `collator` makes one for the model; `load`, if given, takes the
    place of loading the config's model; `tally` is what the objective adds its metrics to; `feed` makes what the model
    learns from of the model, its optimizer and its rows, once an engine has wrapped them.

    Raises ScaleupError as loading and fitting do, and Stopped after a signal."""
    config, plan, runtime = job.config, job.plan, job.runtime
    assert plan.batch is not None
    runtime.progress.report("loading the model")
    model = load() if load else model_to_train(config, plan.model, runtime.device)
    collate = collator(model)
    split = Split(plan.batch.micro_batch, plan.batch.accumulation, runtime.rank, runtime.world)
    loader, num_steps = train_loader(config, data, collate, split)
    # rows left out make for fewer steps than planned
    if isinstance(config.adapter, AdaLoraAdapter) and (problems := list(config.adapter.schedule_problems(num_steps))):
        raise ScaleupError(problems)

    def held_out(rows: Rows) -> Callable[[], Iterable[Batch]]:
        batch_size = config.train.per_device_eval_batch_size
        return lambda: eval_batches(rows, collate, batch_size, runtime.rank, runtime.world)

    retained = {task: held_out(old) for task, old in data.retained.items()}
    rows = Feed(loader, held_out(data.validation) if data.validation else None, tally=tally, retained=retained)

    def learned(wrapped: Any, optimizer: Any) -> Feed:
        return feed(wrapped, optimizer, rows) if feed else rows

    return train_model(job, model, num_steps, objective, learned)


def train_model(
    job: Job[SupervisedConfig], model: Any, num_steps: int, objective: Objective, feed: Callable[[Any, Any], Feed]
) -> Trained:
    """Prepare a model and fit it. `feed` makes what it learns from of the model and its optimizer, once an engine has
    wrapped them.

    Raises ScaleupError as fitting does, and Stopped after a signal."""
    config, runtime, train = job.config, job.runtime, job.config.train
    wrapped, optimizer = runtime.prepare(model, build_optimizer(model, train))
    is_new = config.adapter is not None and getattr(config.adapter, "path", None) is None
    ranks = (
        RankAllocation(model, base_optimizer(optimizer), num_steps if is_new else None) if is_adalora(model) else None
    )
    schedule = build_schedule(base_optimizer(optimizer), train, num_steps)
    seed_everything(train.seed + 1 + runtime.rank)  # dropout differs between ranks

    state = fit(
        Training(
            config=config,
            runtime=runtime,
            run=job.folder,
            model=wrapped,
            optimizer=optimizer,
            schedule=schedule,
            feed=feed(wrapped, optimizer),
            num_steps=num_steps,
            objective=objective,
            ranks=ranks,
        )
    )
    return Trained(model, wrapped, state)
