"""A prepared run goes in; where it stands in the end comes out. This is the loop of every algorithm: rollouts, their
rewards, passes over them; time, logging, evaluation, checkpoints and stopping. The maths is in `algorithms`."""

from __future__ import annotations

import time
from typing import Any

from scaleup.bridge.client import StopWhileWaiting
from scaleup.rl import metrics as named
from scaleup.rl.advantages import adapted_kl_coef
from scaleup.rl.checks import check_equal_ranks, check_experience, check_steps, tolerance_of
from scaleup.rl.drawing import draw_ahead, draw_rollout, renew
from scaleup.rl.experience import Experience, compute_advantages
from scaleup.rl.held_out import evaluate_if_due
from scaleup.rl.run import RL, RLCheckpointer, RLState
from scaleup.rl.sampling import sampling_metrics
from scaleup.rl.update import Updater
from scaleup.train.checkpoint import Checkpointer
from scaleup.train.fit import finite, is_due, is_over, stop_run, stops_here
from scaleup.train.metrics import MetricsLog, peak_memory_mib

NAMES = {
    "ppo": (named.ppo_rollout_metrics, named.ppo_update_metrics),
    "grpo": (named.rollout_metrics, named.update_metrics),
}
"""Maps whose metric names a run has, of TRL's trainers -> what computes a rollout's, and names an update's."""


def run_rl(training: RL) -> RLState:
    """Train rollout by rollout, from the newest checkpoint on. Raises Stopped after a signal."""
    rollouts, runtime = training.rollouts, training.runtime
    checkpointer = RLCheckpointer(
        runtime,
        training.run,
        training.model,
        training.optimizer,
        training.schedule,
        training.train,
    )
    checkpointer.generator = training.generator
    state = checkpointer.restore()
    training.generator.put_back(state.ahead)
    metrics = MetricsLog(runtime, training.run, training.name, training.hyperparameters, state.step)
    updater = Updater(
        runtime=runtime,
        model=training.model,
        optimizer=training.optimizer,
        schedule=training.schedule,
        algorithm=training.algorithm,
        rollouts=rollouts,
        train=training.train,
        pad_id=training.sampling.pad_id,
        tolerance=tolerance_of(runtime.group.mixed_precision, training.quantization),
        supervised=training.supervised,
    )
    try:
        _rollouts(training, state, checkpointer, metrics, updater)
    except StopWhileWaiting:  # nothing has been learned since the last rollout
        stop_run(runtime, training.run, checkpointer, state, rollouts.num_rollouts)
    checkpointer.wait()
    if training.train.load_best_model_at_end:
        checkpointer.load_best_weights(state)
    runtime.progress.heartbeat.end_steps()
    metrics.close()
    return state


def _rollouts(
    training: RL, state: RLState, checkpointer: Checkpointer[Any], metrics: MetricsLog, updater: Updater
) -> None:
    rollouts, train, runtime = training.rollouts, training.train, training.runtime
    if state.step == 0:
        state.kl_coef, state.evaluated = training.algorithm.settings.beta, -1
    if state.evaluated is not None:  # also one during which a run was stopped
        _evaluate(training, state, checkpointer, metrics, updater)
    while state.step < rollouts.num_rollouts and not is_over(train, state):
        if stops_here(train, state.step):
            stop_run(runtime, training.run, checkpointer, state, rollouts.num_rollouts)
        runtime.progress.heartbeat.begin_step(state.step + 1, rollouts.num_rollouts)
        started = time.perf_counter()
        experience, values, kl = _rollout(training, updater, state, checkpointer)
        _adapt(training, state, kl)
        state.step += 1
        if state.step % train.logging_steps == 0 or state.step == rollouts.num_rollouts:
            values |= {"time/rollout": time.perf_counter() - started, "memory_mib": peak_memory_mib(runtime.device)}
            metrics.log(state.step, **values)
        shown = {"reward": round(float(experience.scores.mean()), 3), "kl": round(kl, 3)}
        runtime.progress.report("rollouts", state.step, rollouts.num_rollouts, **shown)
        _evaluate(training, state, checkpointer, metrics, updater)
        stop, save = runtime.sum(runtime.stop.requested, checkpointer.is_time())
        if save or is_over(train, state) or is_due(train.save_steps, state.step, rollouts.num_rollouts):
            checkpointer.save(state)
        if stop and state.step < rollouts.num_rollouts:
            stop_run(runtime, training.run, checkpointer, state, rollouts.num_rollouts)


def _rollout(
    training: RL, updater: Updater, state: RLState, checkpointer: Checkpointer[Any]
) -> tuple[Experience, dict[str, float], float]:
    """Draw a rollout and learn from it. Returns it with its metrics, and its mean KL divergence from the reference, in
    nats a response."""
    rollouts, runtime, algorithm = training.rollouts, training.runtime, training.algorithm
    assert state.kl_coef is not None
    if not training.generator.is_ahead:
        renew(training, state, updater.tolerance)
    experience = draw_rollout(training, state)
    draw_ahead(training, state, updater.tolerance)
    estimates = compute_advantages(experience, algorithm, rollouts, training.rewards.weights, state.kl_coef)
    if rollouts.self_checks:
        check_experience(experience, estimates, algorithm, state.num_updates == 0, updater.tolerance)
    of_rollout, of_update = NAMES[training.names]
    values = of_rollout(experience, estimates, algorithm.settings.num_generations, state.kl_coef)
    values |= sampling_metrics(experience) | training.compared
    started = time.perf_counter()
    with finite(state.step + 1, checkpointer), training.timeline.span("training"):
        learned, steps = updater.learn(experience, estimates, state.step)
    values |= of_update(learned) | {"time/training": time.perf_counter() - started}
    kl = float(experience.log_ratio.sum(dim=1).mean())
    if experience.logprobs is None:
        values |= named.late_metrics(experience, learned)
        kl = values.get("kl_response", 0.0)
    if rollouts.self_checks:
        check_steps(steps, rollouts.num_passes * rollouts.num_mini_batches, rollouts.target_kl is not None)
        check_equal_ranks(runtime, training.model)
    state.num_updates += steps
    state.num_tokens += int(experience.lengths.sum())
    return experience, values, kl


def _evaluate(
    training: RL, state: RLState, checkpointer: Checkpointer[Any], metrics: MetricsLog, updater: Updater
) -> None:
    """Evaluate where it is time to, and keep the weights where they are the best so far."""
    if evaluate_if_due(training, metrics, state, updater.tolerance) and training.train.load_best_model_at_end:
        checkpointer.save(state)


def _adapt(training: RL, state: RLState, kl: float) -> None:
    settings = training.algorithm.settings
    if settings.kl_controller == "adaptive":
        assert state.kl_coef is not None
        size = training.rollouts.batch_size
        state.kl_coef = adapted_kl_coef(state.kl_coef, kl, settings.kl_target, size, settings.kl_horizon)
