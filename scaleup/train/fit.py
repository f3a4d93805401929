"""The one supervised loop: time, logging, evaluation, checkpoints and stopping. The maths of a step is in `step`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch.optim.lr_scheduler import LRScheduler

from scaleup.artifacts.files import write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages import SupervisedConfig
from scaleup.data.collate import Batch
from scaleup.data.loader import TrainLoader
from scaleup.distributed.engines import NonFiniteError
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.train.adalora import RankAllocation
from scaleup.train.checkpoint import Checkpointer
from scaleup.train.metrics import MetricsLog, peak_memory_mib
from scaleup.train.state import TrainState
from scaleup.train.step import Objective, StepResult, evaluate_loss, train_step


class Stopped(Exception):
    """A signal asked for a stop; everything is saved and the run can go on later."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


@dataclass
class Fit:
    """All that a supervised run consists of, prepared. `validation` gives this rank's batches, anew each call."""

    config: SupervisedConfig
    runtime: Runtime
    run: RunFolder
    model: torch.nn.Module
    optimizer: Any
    schedule: LRScheduler
    loader: TrainLoader
    num_steps: int
    objective: Objective
    validation: Callable[[], Iterable[Batch]] | None
    ranks: RankAllocation | None = None
    """Of an AdaLoRA adapter."""


def fit(job: Fit) -> TrainState:
    """Train to the last step from wherever the newest checkpoint stands. Raises Stopped after a signal."""
    train = job.config.train
    checkpointer: Checkpointer[TrainState] = Checkpointer(
        job.runtime,
        job.run,
        job.model,
        job.optimizer,
        job.schedule,
        train.save_total_limit,
        job.ranks,
        minutes=train.save_minutes,
    )
    state = checkpointer.restore()
    metrics = MetricsLog(job.runtime, job.run, job.config, state.step)
    job.model.train()
    seconds, tokens = 0.0, 0  # of the steps since the last line of the log: evaluation and saving do not count
    while state.step < job.num_steps and not _is_over(job, state):
        job.runtime.progress.sign.begin_step(state.step + 1)
        started = time.perf_counter()
        result = _step(job, state, checkpointer)
        seconds += time.perf_counter() - started
        state.step += 1
        state.num_tokens += result.num_tokens
        tokens += result.num_tokens
        if state.step % train.logging_steps == 0 or state.step == job.num_steps:
            _log_step(job, metrics, state, result, tokens / seconds)
            seconds, tokens = 0.0, 0
        job.runtime.progress.report("training", state.step, job.num_steps, loss=round(result.loss, 4))
        evaluates = job.validation is not None and is_due(train.eval_steps, state.step, job.num_steps)
        improved = evaluates and _evaluate(job, metrics, state, checkpointer)
        save_best = improved and train.load_best_model_at_end
        asked = result.save_asked or save_best
        if asked or _is_over(job, state) or is_due(train.save_steps, state.step, job.num_steps):
            checkpointer.save(state)
        if result.stop_requested and state.step < job.num_steps:
            stop_run(job.runtime, job.run, checkpointer, state, job.num_steps)
    if train.load_best_model_at_end:
        checkpointer.load_best_weights(state)
    job.runtime.progress.sign.end_steps()
    metrics.close()
    return state


def _step(job: Fit, state: TrainState, checkpointer: Checkpointer[Any]) -> StepResult:
    job.runtime.progress.at("reading rows")
    batches = job.loader.batches(state.step)
    limit, penalty = job.config.train.max_grad_norm, job.ranks.penalty if job.ranks else None
    with finite(state.step + 1, checkpointer):
        asks = checkpointer.is_time
        result = train_step(job.runtime, job.model, job.optimizer, batches, job.objective, limit, penalty, asks)
    if not result.skipped:
        job.schedule.step()
    return result


def _log_step(job: Fit, metrics: MetricsLog, state: TrainState, result: StepResult, rate: float) -> None:
    metrics.log(
        state.step,
        loss=result.loss,
        learning_rate=result.learning_rate,
        grad_norm=result.grad_norm,
        tokens_per_second=round(rate, 1),
        memory_mib=peak_memory_mib(job.runtime.device),
        num_tokens=state.num_tokens,
    )


def _evaluate(job: Fit, metrics: MetricsLog, state: TrainState, checkpointer: Checkpointer[Any]) -> bool:
    """Validation loss into the log; whether it is the best so far."""
    assert job.validation is not None
    with finite(state.step, checkpointer):
        loss = evaluate_loss(job.runtime, job.model, job.validation(), job.objective)
    metrics.log(state.step, eval_loss=loss)
    return state.note_evaluation(loss, job.config.train.early_stopping_threshold)


@contextmanager
def finite(step: int, checkpointer: Checkpointer[Any]) -> Iterator[None]:
    """A NaN or infinite loss is the user's to know: at which step, and from where the run can go on."""
    try:
        yield
    except NonFiniteError as error:
        last = checkpointer.last_step
        saved = f"the last good checkpoint is step {last}" if last else "no checkpoint was saved yet"
        remedy = "lower train.learning_rate, or look at the rows of this step"
        raise ScaleupError.of(f"training step {step}", f"{error}; {saved}", remedy) from error


def is_due(every: int | None, step: int, last: int) -> bool:
    """Whether something that comes `every` so many steps, and at the end, comes now."""
    return step == last or (every is not None and step % every == 0)


def _is_over(job: Fit, state: TrainState) -> bool:
    """Early stopping: a pure function of the state, so a run that goes on after a kill decides the same."""
    patience = job.config.train.early_stopping_patience
    return patience is not None and state.evaluations_without_gain >= patience


def stop_run(
    runtime: Runtime, run: RunFolder, checkpointer: Checkpointer[Any], state: TrainState, num_steps: int
) -> NoReturn:
    """Save, say that the run can go on, and raise Stopped. Every rank must call it."""
    checkpointer.save(state)
    if runtime.is_main:
        write_json(run.resumable_file, {"step": state.step, "num_steps": num_steps})
    runtime.barrier()
    raise Stopped(state.step)
