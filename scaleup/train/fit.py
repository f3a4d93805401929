"""A prepared model, its data and its objective go in; a trained model and the state of its training come out. This is
the one supervised loop: time, logging, evaluation, checkpoints and stopping. The maths of a step is in `step`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import torch
from torch.optim.lr_scheduler import LRScheduler

from scaleup.artifacts.files import write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.train_state import TrainState
from scaleup.config.schema import EvaluatedConfig, OptimizationConfig
from scaleup.config.stages.base import SupervisedConfig
from scaleup.data.collate import Batch
from scaleup.distributed.engines import NonFiniteError
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.train.adalora import RankAllocation
from scaleup.train.checkpoint import Checkpointer
from scaleup.train.metrics import MetricsLog, peak_memory_mib, perplexity
from scaleup.train.step import Objective, StepResult, evaluate_loss, train_step
from scaleup.train.tally import Tally


class Stopped(Exception):
    """A signal stopped the run; everything is saved and it can go on later."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class Loader(Protocol):
    """Gives the micro-batches of any step: those of rows, or of what the model itself makes of them."""

    def batches(self, step: int) -> Sequence[Batch]:
        """Returns the micro-batches of this rank in optimizer step `step`, counted from 0. Every rank must call it."""


@dataclass(frozen=True)
class Feed:
    """Holds what a model learns from."""

    loader: Loader
    validation: Callable[[], Iterable[Batch]] | None
    """Gives this rank's batches, anew each call; None: there are none."""
    measured: Callable[[], dict[str, float]] = dict
    """Returns metrics of the last step's batches over all ranks; every rank calls it."""
    tally: Tally | None = None
    """Is what the objective adds its metrics to; None: it has none."""
    retained: Mapping[str, Callable[[], Iterable[Batch]]] = field(default_factory=dict)
    """Maps an old task -> what gives this rank's batches of its rows, anew each call."""
    answered: Callable[[], dict[str, float]] | None = None
    """Lets the model answer validation rows, and returns the figures of its answers; every rank calls it."""


@dataclass
class Training:
    """Holds all that a supervised training consists of, prepared."""

    config: SupervisedConfig
    runtime: Runtime
    run: RunFolder
    model: torch.nn.Module
    optimizer: Any
    schedule: LRScheduler
    feed: Feed
    num_steps: int
    objective: Objective
    ranks: RankAllocation | None = None
    """Allocates the ranks of an AdaLoRA adapter; None: there is none."""


def fit(training: Training) -> TrainState:
    """Train to the last step from the newest checkpoint on. Raises Stopped after a signal, and ScaleupError for a loss
    that is not finite."""
    train = training.config.train
    checkpointer: Checkpointer[TrainState] = Checkpointer(
        training.runtime,
        training.run,
        training.model,
        training.optimizer,
        training.schedule,
        train,
        training.ranks,
    )
    state = checkpointer.restore()
    metrics = MetricsLog(training.runtime, training.run, training.config.name, training.config.shown(), state.step)
    training.model.train()
    if state.step == 0:
        _measure_retained(training, metrics, state, checkpointer)
    seconds, tokens = 0.0, 0  # of the steps since the last line of the log: evaluation and saving do not count
    while state.step < training.num_steps and not is_over(train, state):
        if stops_here(train, state.step):
            stop_run(training.runtime, training.run, checkpointer, state, training.num_steps)
        training.runtime.progress.heartbeat.begin_step(state.step + 1, training.num_steps)
        started = time.perf_counter()
        result = _step(training, state, checkpointer)
        seconds += time.perf_counter() - started
        state.step += 1
        state.num_tokens += result.num_tokens
        tokens += result.num_tokens
        if state.step % train.logging_steps == 0 or state.step == training.num_steps:
            _log_step(training, metrics, state, result, tokens / seconds)
            seconds, tokens = 0.0, 0
        training.runtime.progress.report("training", state.step, training.num_steps, loss=round(result.loss, 4))
        evaluates = is_due(train.eval_steps, state.step, training.num_steps)
        improved = evaluates and _evaluate(training, metrics, state, checkpointer)
        save_best = improved and train.load_best_model_at_end
        is_wanted = result.save_requested or save_best
        if is_wanted or is_over(train, state) or is_due(train.save_steps, state.step, training.num_steps):
            checkpointer.save(state)
        if result.stop_requested and state.step < training.num_steps:
            stop_run(training.runtime, training.run, checkpointer, state, training.num_steps)
    checkpointer.wait()
    if train.load_best_model_at_end:
        checkpointer.load_best_weights(state)
    training.runtime.progress.heartbeat.end_steps()
    metrics.close()
    return state


def _step(training: Training, state: TrainState, checkpointer: Checkpointer[Any]) -> StepResult:
    training.runtime.progress.enter_phase("reading rows")
    if training.feed.tally is not None:
        training.feed.tally.clear()
    batches = training.feed.loader.batches(state.step)
    limit, penalty = training.config.train.max_grad_norm, training.ranks.penalty if training.ranks else None
    with finite(state.step + 1, checkpointer):
        asks_to_save = checkpointer.is_time
        result = train_step(
            training.runtime,
            training.model,
            training.optimizer,
            batches,
            training.objective,
            limit,
            penalty,
            asks_to_save,
        )
    if not result.skipped:
        training.schedule.step()
    return result


def _log_step(training: Training, metrics: MetricsLog, state: TrainState, result: StepResult, rate: float) -> None:
    metrics.log(
        state.step,
        loss=result.loss,
        learning_rate=result.learning_rate,
        grad_norm=result.grad_norm,
        tokens_per_second=round(rate, 1),
        memory_mib=peak_memory_mib(training.runtime.device),
        num_tokens=state.num_tokens,
        **training.feed.measured(),
        **_means(training),
    )


def _evaluate(training: Training, metrics: MetricsLog, state: TrainState, checkpointer: Checkpointer[Any]) -> bool:
    """Log the losses of old tasks and the validation loss; return whether this one is the best so far."""
    _measure_retained(training, metrics, state, checkpointer)
    if training.feed.validation is None:
        return False
    if training.feed.tally is not None:
        training.feed.tally.clear()
    with finite(state.step, checkpointer):
        loss = evaluate_loss(training.runtime, training.model, training.feed.validation(), training.objective)
    values = {"loss": loss, **_means(training)}
    if training.feed.answered is not None:
        values |= training.feed.answered()
    metrics.log(state.step, **{f"eval_{name}": value for name, value in values.items()})
    train = training.config.train
    if train.metric_for_best_model not in values:
        what = f"{train.metric_for_best_model!r} was not measured: there are {', '.join(values)}"
        raise ScaleupError.of("train.metric_for_best_model", what, "name one of them")
    value = values[train.metric_for_best_model]
    return state.note_evaluation(value, train.early_stopping_threshold, train.goes_by_greater)


def _measure_retained(
    training: Training, metrics: MetricsLog, state: TrainState, checkpointer: Checkpointer[Any]
) -> None:
    """Log the mean loss of each old task, in nats a labelled token, and its perplexity."""
    values: dict[str, float] = {}
    for task, batches in training.feed.retained.items():
        with finite(state.step, checkpointer):
            loss = evaluate_loss(training.runtime, training.model, batches(), training.objective)
        values |= {f"eval/retain/{task}/loss": loss, f"eval/retain/{task}/perplexity": perplexity(loss)}
    if values:
        metrics.log(state.step, **values)


def _means(training: Training) -> dict[str, float]:
    """Return the means of what the objective added since the tally was cleared. Every rank must call it."""
    return {} if training.feed.tally is None else training.feed.tally.means(training.runtime)


@contextmanager
def finite(step: int, checkpointer: Checkpointer[Any]) -> Iterator[None]:
    """Report a NaN or infinite loss as the user's problem: at which step, and from where the run can go on."""
    try:
        yield
    except NonFiniteError as error:
        with suppress(ScaleupError):  # that the last one cannot be written
            checkpointer.wait()
        last = checkpointer.last_step
        saved = f"the last good checkpoint is step {last}" if last else "no checkpoint was saved yet"
        remedy = "lower train.learning_rate, or look at the rows of this step"
        raise ScaleupError.of(f"training step {step}", f"{error}; {saved}", remedy) from error


def is_due(every: int | None, step: int, last: int) -> bool:
    """Return whether something that comes `every` so many steps, and at the end, comes now."""
    return step == last or (every is not None and step % every == 0)


def is_over(train: EvaluatedConfig, state: TrainState) -> bool:
    """Return whether the run stops early: a function of the state alone, so a resumed run decides the same."""
    patience = train.early_stopping_patience
    return patience is not None and state.evaluations_without_gain >= patience


def stops_here(train: OptimizationConfig, step: int) -> bool:
    """Return whether the run was told to stop once so many steps are done."""
    return train.stop_at_step is not None and step >= train.stop_at_step


def stop_run(
    runtime: Runtime, run: RunFolder, checkpointer: Checkpointer[Any], state: TrainState, num_steps: int
) -> NoReturn:
    """Save, say that the run can go on, and raise Stopped. Every rank must call it."""
    checkpointer.save(state)
    checkpointer.wait()
    if runtime.is_main:
        write_json(run.resumable_file, {"step": state.step, "num_steps": num_steps})
    runtime.barrier()
    raise Stopped(state.step)
