"""A prepared PPO run goes in; where it stands in the end comes out. This is PPO's loop: rollouts, their rewards, passes
over them; time, logging, evaluation, checkpoints and stopping. The maths is in `advantages`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from scaleup.artifacts.files import write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.train_state import TrainState
from scaleup.bridge.client import StopWhileWaiting
from scaleup.config.schema import OptimizationConfig
from scaleup.config.stages.ppo import PPOSettings
from scaleup.data.prompts import Prompt, PromptOrder
from scaleup.distributed.runtime import Runtime
from scaleup.models.beside import unwrap
from scaleup.models.rollout import HELD_OUT, Responses, Sampling, response_seeds
from scaleup.rl.advantages import adapted_kl_coef
from scaleup.rl.checks import check_equal_ranks, check_experience, check_steps, tolerance_of
from scaleup.rl.experience import Advantages, Experience, ExperienceMaker, compute_advantages, samples_of
from scaleup.rl.rewards.interface import Rewards
from scaleup.rl.update import Updater, micro_batch_size
from scaleup.train.checkpoint import Checkpointer
from scaleup.train.fit import finite, is_due, stop_run
from scaleup.train.metrics import MetricsLog, peak_memory_mib


@dataclass
class PPOState(TrainState):
    """Tells where a PPO run stands; `step` counts rollouts."""

    kl_coef: float | None = None
    num_updates: int = 0
    """Counts the optimizer steps."""


class PPOCheckpointer(Checkpointer[PPOState]):
    state_class = PPOState


@dataclass
class PPO:
    """Holds a PPO run, prepared to start."""

    name: str
    ppo: PPOSettings
    train: OptimizationConfig
    hyperparameters: Mapping[str, Any]
    """Holds what trackers show of the run, beside its name."""
    runtime: Runtime
    run: RunFolder
    model: Any
    """Is a Policy under the run's strategy."""
    optimizer: Any
    schedule: LRScheduler
    prompts: PromptOrder
    held_out: Sequence[Prompt]
    rewards: Rewards
    sampling: Sampling
    tokenizer: Any
    quantization: str | None = None


def run_ppo(training: PPO) -> PPOState:
    """Train rollout by rollout, from the newest checkpoint on. Raises Stopped after a signal."""
    ppo, train, runtime = training.ppo, training.train, training.runtime
    checkpointer = PPOCheckpointer(
        runtime,
        training.run,
        training.model,
        training.optimizer,
        training.schedule,
        train,
    )
    state = checkpointer.restore()
    metrics = MetricsLog(runtime, training.run, training.name, training.hyperparameters, state.step)
    tolerance = tolerance_of(runtime.group.mixed_precision, training.quantization)
    updater = Updater(
        runtime, training.model, training.optimizer, training.schedule, ppo, train, training.sampling.pad_id, tolerance
    )
    try:
        _rollouts(training, state, checkpointer, metrics, updater)
    except StopWhileWaiting:  # nothing has been learned since the last rollout
        stop_run(runtime, training.run, checkpointer, state, ppo.num_rollouts)
    checkpointer.wait()
    runtime.progress.heartbeat.end_steps()
    metrics.close()
    return state


def _rollouts(
    training: PPO, state: PPOState, checkpointer: Checkpointer[Any], metrics: MetricsLog, updater: Updater
) -> None:
    ppo, train, runtime = training.ppo, training.train, training.runtime
    if state.step == 0:
        state.kl_coef = ppo.kl_coef
        _evaluate(training, metrics, state)
    while state.step < ppo.num_rollouts:
        runtime.progress.heartbeat.begin_step(state.step + 1)
        started = time.perf_counter()
        experience, estimates, learned = _rollout(training, updater, state, checkpointer)
        values = _metrics(experience, estimates, state) | learned
        _adapt(training, state, values["objective/kl"])
        state.step += 1
        if state.step % train.logging_steps == 0 or state.step == ppo.num_rollouts:
            values |= {"time/rollout": time.perf_counter() - started, "memory_mib": peak_memory_mib(runtime.device)}
            metrics.log(state.step, **values)
        shown = {"reward": round(values["objective/scores"], 3), "kl": round(values["objective/kl"], 3)}
        runtime.progress.report("rollouts", state.step, ppo.num_rollouts, **shown)
        if is_due(train.eval_steps, state.step, ppo.num_rollouts):
            _evaluate(training, metrics, state)
        stop, save = runtime.sum(runtime.stop.requested, checkpointer.is_time())
        if save or is_due(train.save_steps, state.step, ppo.num_rollouts):
            checkpointer.save(state)
        if stop and state.step < ppo.num_rollouts:
            stop_run(runtime, training.run, checkpointer, state, ppo.num_rollouts)


def _rollout(
    training: PPO, updater: Updater, state: PPOState, checkpointer: Checkpointer[Any]
) -> tuple[Experience, Advantages, dict[str, float]]:
    ppo, runtime, train = training.ppo, training.runtime, training.train
    assert state.kl_coef is not None
    prompts = training.prompts.rollout(state.step, ppo.rollout_batch_size)
    seeds = response_seeds(train.seed, state.step, len(prompts))
    experience = _experience(training, prompts, seeds)
    estimates = compute_advantages(experience, ppo, state.kl_coef)
    if ppo.self_checks:
        check_experience(experience, estimates, state.kl_coef, state.num_updates == 0, updater.tolerance)
    started = time.perf_counter()
    with finite(state.step + 1, checkpointer):
        learned, steps = updater.learn(experience, estimates, state.step)
    learned["time/training"] = time.perf_counter() - started
    if ppo.self_checks:
        check_steps(steps, ppo.num_ppo_epochs * ppo.num_mini_batches, ppo.target_kl is not None)
        check_equal_ranks(runtime, training.model)
    state.num_updates += steps
    state.num_tokens += int(experience.lengths.sum())
    return experience, estimates, learned


def _experience(training: PPO, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]) -> Experience:
    maker = ExperienceMaker(
        training.runtime,
        training.model,
        training.tokenizer,
        training.sampling,
        training.rewards,
        generation_batch_size=training.train.per_device_eval_batch_size,
        forward_batch_size=micro_batch_size(training.train),
    )
    return maker.make(prompts, seeds)


def _adapt(training: PPO, state: PPOState, kl: float) -> None:
    ppo = training.ppo
    if ppo.kl_controller == "adaptive":
        assert state.kl_coef is not None
        size = ppo.rollout_batch_size
        state.kl_coef = adapted_kl_coef(state.kl_coef, kl, ppo.kl_target, size, ppo.kl_horizon)


def _metrics(experience: Experience, estimates: Advantages, state: PPOState) -> dict[str, float]:
    """Return the metrics of a rollout, under TRL's names; means over responses unless the name says otherwise."""
    mask, lengths = experience.mask, experience.lengths.double()
    kl = experience.log_ratio.sum(dim=1)
    non_score = estimates.rewards.sum(dim=1) - estimates.scores
    tokens = mask.sum()
    return {
        "objective/kl": float(kl.mean()),
        "objective/kl_coef": float(state.kl_coef or 0.0),
        "objective/entropy": float(experience.entropies.sum(dim=1).mean()),
        "objective/scores": float(experience.scores.mean()),
        "objective/scores_std": float(experience.scores.std(unbiased=False)),
        "objective/non_score_reward": float(non_score.mean()),
        "objective/rlhf_reward": float(estimates.rewards.sum(dim=1).mean()),
        "ppo/returns/mean": float(estimates.returns.sum() / tokens),
        "ppo/returns/var": float(estimates.returns[mask].var(unbiased=False)),
        "ppo/policy/advantages_mean": float(estimates.advantages.sum() / tokens),
        "ppo/val/mean": float(experience.values.sum() / tokens),
        "response/length_mean": float(lengths.mean()),
        "response/length_max": float(lengths.max()),
        "response/eos_share": float(experience.finished.double().mean()),
        **{f"time/{what.replace(' ', '_')}": seconds for what, seconds in experience.seconds.items()},
    }


def _evaluate(training: PPO, metrics: MetricsLog, state: PPOState) -> None:
    """Evaluate on the held-out prompts, with the same seeds each time; some responses are kept as text."""
    if not training.held_out:
        return
    training.runtime.progress.report("answering held-out prompts")
    world = training.runtime.world
    filled = [
        *training.held_out,
        *([training.held_out[-1]] * (-len(training.held_out) % world)),
    ]  # every rank has as many
    seeds = response_seeds(training.train.seed, HELD_OUT, len(filled))
    experience = _experience(training, filled, seeds)
    count = len(training.held_out)
    scores, kl = experience.scores[:count], experience.log_ratio[:count].sum(dim=1)
    metrics.log(
        state.step,
        **{
            "eval/scores": float(scores.mean()),
            "eval/scores_std": float(scores.std(unbiased=False)),
            "eval/kl": float(kl.mean()),
            "eval/length_mean": float(experience.lengths[:count].double().mean()),
        },
    )
    if training.runtime.is_main:
        drawn = Responses(experience.tokens, experience.lengths, experience.finished)
        is_seq2seq = unwrap(training.model).is_seq2seq
        samples = samples_of(training.tokenizer, filled, drawn, training.sampling.eos_ids, is_seq2seq)
        rows = [
            {"prompt": sample.prompt, "response": sample.response, "score": score}
            for sample, score in zip(samples, scores.tolist(), strict=False)
        ]
        file = samples_file(training.run, state.step)
        file.parent.mkdir(exist_ok=True)
        write_json(file, rows[: training.ppo.num_samples])


def samples_file(run: RunFolder, step: int) -> Path:
    return run.path / "samples" / f"rollout-{step:06d}.json"
