"""What the stages share that learn from rows as they are: from tokenized data to a trained model, by the one loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages import SupervisedConfig
from scaleup.data.collate import Batch, Collator
from scaleup.data.dataset import TrainingData, train_loader
from scaleup.data.loader import Split, eval_batches
from scaleup.distributed.engines import base_optimizer
from scaleup.distributed.runtime import Runtime, seed_everything
from scaleup.errors import ScaleupError
from scaleup.models.adapters import is_adalora
from scaleup.plan.adapters import rank_schedule_problems
from scaleup.plan.types import Plan
from scaleup.train.adalora import RankAllocation
from scaleup.train.fit import Fit, fit
from scaleup.train.model import model_to_train
from scaleup.train.optim import build_optimizer, build_schedule
from scaleup.train.state import TrainState
from scaleup.train.step import Objective


@dataclass(frozen=True)
class Trained:
    model: Any
    wrapped: Any
    """The same under the run's strategy."""
    state: TrainState


def train_supervised(
    config: SupervisedConfig,
    plan: Plan,
    runtime: Runtime,
    folder: RunFolder,
    data: TrainingData,
    collator: Callable[[Any], Collator],
    objective: Objective,
    load: Callable[[], Any] | None = None,
) -> Trained:
    """Load the config's model, prepare it and fit it. `collator` makes one for the model; `load` takes the place of
    loading what the config says alone.

    Raises ScaleupError as loading and fitting do, and Stopped after a signal."""
    assert plan.batch is not None
    train = config.train
    runtime.progress.report("loading the model")
    model = load() if load else model_to_train(config, plan.model, runtime.device)
    collate = collator(model)
    split = Split(plan.batch.micro_batch, plan.batch.accumulation, runtime.rank, runtime.world)
    loader, num_steps = train_loader(config, data, collate, split)
    if problems := list(rank_schedule_problems(config, num_steps)):  # rows left out make for fewer steps than planned
        raise ScaleupError(problems)

    wrapped, optimizer = runtime.prepare(model, build_optimizer(model, train))
    is_new = config.adapter is not None and getattr(config.adapter, "path", None) is None
    ranks = (
        RankAllocation(model, base_optimizer(optimizer), num_steps if is_new else None) if is_adalora(model) else None
    )
    schedule = build_schedule(base_optimizer(optimizer), train, num_steps)
    seed_everything(train.seed + 1 + runtime.rank)  # dropout differs between ranks

    def validation() -> Iterable[Batch]:
        return eval_batches(data.validation, collate, train.per_device_eval_batch_size, runtime.rank, runtime.world)

    state = fit(
        Fit(
            config=config,
            runtime=runtime,
            run=folder,
            model=wrapped,
            optimizer=optimizer,
            schedule=schedule,
            loader=loader,
            num_steps=num_steps,
            objective=objective,
            validation=validation if data.validation else None,
            ranks=ranks,
        )
    )
    return Trained(model, wrapped, state)
