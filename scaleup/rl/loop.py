"""PPO's loop: rollouts, their rewards, passes over them; time, logging, evaluation, checkpoints and stopping. The maths
is in `advantages` and `losses`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from scaleup.artifacts.files import write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages import PPOConfig
from scaleup.data.prompts import Prompt, PromptOrder
from scaleup.distributed.bridge import StopWhileWaiting
from scaleup.distributed.runtime import Runtime
from scaleup.rl.checks import check_equal_ranks, check_experience, check_steps, tolerance_of
from scaleup.rl.experience import Experience, Judged, TextOf, gather_experience, judge
from scaleup.rl.kl_control import adapted_kl_coef
from scaleup.rl.rewards import Rewards
from scaleup.rl.rollout import Sampling
from scaleup.rl.update import Updater, micro_batch_size, response_seeds
from scaleup.train.checkpoint import Checkpointer
from scaleup.train.fit import finite, is_due, stop_run
from scaleup.train.metrics import MetricsLog, peak_memory_mib
from scaleup.train.state import TrainState

HELD_OUT = 2**31
"""In the place of a rollout's number: the seeds of held-out responses, the same in every evaluation."""


@dataclass
class PPOState(TrainState):
    """`step` counts rollouts."""

    kl_coef: float | None = None
    num_updates: int = 0
    """Optimizer steps."""


@dataclass
class PPO:
    """All that a run consists of, prepared."""

    config: PPOConfig
    runtime: Runtime
    run: RunFolder
    model: Any
    """A Policy under the run's strategy."""
    optimizer: Any
    schedule: LRScheduler
    prompts: PromptOrder
    held_out: Sequence[Prompt]
    rewards: Rewards
    sampling: Sampling
    tokenizer: Any


def run_ppo(job: PPO) -> PPOState:
    """Rollout after rollout, from wherever the newest checkpoint stands. Raises Stopped after a signal."""
    ppo, train, runtime = job.config.ppo, job.config.train, job.runtime
    checkpointer = Checkpointer(
        runtime,
        job.run,
        job.model,
        job.optimizer,
        job.schedule,
        train.save_total_limit,
        new_state=PPOState,
        minutes=train.save_minutes,
    )
    state = checkpointer.restore()
    metrics = MetricsLog(runtime, job.run, job.config, state.step)
    tolerance = tolerance_of(runtime.group.mixed_precision, job.config.quantization)
    updater = Updater(runtime, job.model, job.optimizer, job.schedule, ppo, train, job.sampling.pad_id, tolerance)
    try:
        _rollouts(job, state, checkpointer, metrics, updater)
    except StopWhileWaiting:  # nothing has been learned since the last rollout
        stop_run(runtime, job.run, checkpointer, state, ppo.num_rollouts)
    runtime.progress.sign.end_steps()
    metrics.close()
    return state


def _rollouts(
    job: PPO, state: PPOState, checkpointer: Checkpointer[Any], metrics: MetricsLog, updater: Updater
) -> None:
    ppo, train, runtime = job.config.ppo, job.config.train, job.runtime
    if state.step == 0:
        state.kl_coef = ppo.kl_coef
        _evaluate(job, metrics, state)
    while state.step < ppo.num_rollouts:
        runtime.progress.sign.begin_step(state.step + 1)
        started = time.perf_counter()
        experience, judged, learned = _rollout(job, updater, state, checkpointer)
        found = _metrics(experience, judged, state) | learned
        _adapt(job, state, found["objective/kl"])
        state.step += 1
        if state.step % train.logging_steps == 0 or state.step == ppo.num_rollouts:
            found |= {"time/rollout": time.perf_counter() - started, "memory_mib": peak_memory_mib(runtime.device)}
            metrics.log(state.step, **found)
        shown = {"reward": round(found["objective/scores"], 3), "kl": round(found["objective/kl"], 3)}
        runtime.progress.report("rollouts", state.step, ppo.num_rollouts, **shown)
        if is_due(train.eval_steps, state.step, ppo.num_rollouts):
            _evaluate(job, metrics, state)
        stop, save = runtime.sum(runtime.stop.requested, checkpointer.is_time())
        if save or is_due(train.save_steps, state.step, ppo.num_rollouts):
            checkpointer.save(state)
        if stop and state.step < ppo.num_rollouts:
            stop_run(runtime, job.run, checkpointer, state, ppo.num_rollouts)


def _rollout(
    job: PPO, updater: Updater, state: PPOState, checkpointer: Checkpointer[Any]
) -> tuple[Experience, Judged, dict[str, float]]:
    ppo, runtime, train = job.config.ppo, job.runtime, job.config.train
    assert state.kl_coef is not None
    prompts = job.prompts.rollout(state.step, ppo.rollout_batch_size)
    seeds = response_seeds(train.seed, state.step, len(prompts))
    experience = _experience(job, prompts, seeds)
    judged = judge(experience, ppo, state.kl_coef)
    if ppo.self_checks:
        check_experience(experience, judged, state.kl_coef, state.num_updates == 0, updater.tolerance)
    started = time.perf_counter()
    with finite(state.step + 1, checkpointer):
        learned, steps = updater.learn(experience, judged, state.step)
    learned["time/training"] = time.perf_counter() - started
    if ppo.self_checks:
        check_steps(steps, ppo.num_ppo_epochs * ppo.num_mini_batches, ppo.target_kl is not None)
        check_equal_ranks(runtime, job.model)
    state.num_updates += steps
    state.num_tokens += int(experience.lengths.sum())
    return experience, judged, learned


def _experience(job: PPO, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]]) -> Experience:
    train = job.config.train
    sizes = (train.per_device_eval_batch_size, micro_batch_size(train))
    texts = TextOf(job.tokenizer)
    return gather_experience(job.runtime, job.model, prompts, seeds, job.sampling, job.rewards, sizes, texts)


def _adapt(job: PPO, state: PPOState, kl: float) -> None:
    ppo = job.config.ppo
    if ppo.kl_controller == "adaptive":
        assert state.kl_coef is not None
        size = ppo.rollout_batch_size
        state.kl_coef = adapted_kl_coef(state.kl_coef, kl, ppo.kl_target, size, ppo.kl_horizon)


def _metrics(experience: Experience, judged: Judged, state: PPOState) -> dict[str, float]:
    """By the names that users of TRL know."""
    mask, lengths = experience.mask, experience.lengths.double()
    kl = experience.log_ratio.sum(dim=1)
    non_score = judged.rewards.sum(dim=1) - judged.penalised
    tokens = mask.sum()
    return {
        "objective/kl": float(kl.mean()),
        "objective/kl_coef": float(state.kl_coef or 0.0),
        "objective/entropy": float(experience.entropies.sum(dim=1).mean()),
        "objective/scores": float(experience.scores.mean()),
        "objective/scores_std": float(experience.scores.std(unbiased=False)),
        "objective/non_score_reward": float(non_score.mean()),
        "objective/rlhf_reward": float(judged.rewards.sum(dim=1).mean()),
        "ppo/returns/mean": float(judged.returns.sum() / tokens),
        "ppo/returns/var": float(judged.returns[mask].var(unbiased=False)),
        "ppo/policy/advantages_mean": float(judged.advantages.sum() / tokens),
        "ppo/val/mean": float(experience.values.sum() / tokens),
        "response/length_mean": float(lengths.mean()),
        "response/length_max": float(lengths.max()),
        "response/eos_share": float(experience.finished.double().mean()),
        **{f"time/{what.replace(' ', '_')}": seconds for what, seconds in experience.seconds.items()},
    }


def _evaluate(job: PPO, metrics: MetricsLog, state: PPOState) -> None:
    """Responses to the held-out prompts, drawn from the same seeds each time; some are kept as text."""
    if not job.held_out:
        return
    job.runtime.progress.report("answering held-out prompts")
    world = job.runtime.world
    filled = [*job.held_out, *([job.held_out[-1]] * (-len(job.held_out) % world))]  # every rank has as many
    seeds = response_seeds(job.config.train.seed, HELD_OUT, len(filled))
    found = _experience(job, filled, seeds)
    count = len(job.held_out)
    scores, kl = found.scores[:count], found.log_ratio[:count].sum(dim=1)
    metrics.log(
        state.step,
        **{
            "eval/scores": float(scores.mean()),
            "eval/scores_std": float(scores.std(unbiased=False)),
            "eval/kl": float(kl.mean()),
            "eval/length_mean": float(found.lengths[:count].double().mean()),
        },
    )
    if job.runtime.is_main:
        texts = job.tokenizer.batch_decode(
            [row[:n] for row, n in zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)],
            skip_special_tokens=True,
        )
        rows = [
            {"prompt": prompt.text, "response": text, "score": score}
            for prompt, text, score in zip(job.held_out, texts, scores.tolist(), strict=False)
        ]
        file = samples_file(job.run, state.step)
        file.parent.mkdir(exist_ok=True)
        write_json(file, rows[: job.config.ppo.num_samples])


def samples_file(run: RunFolder, step: int) -> Path:
    return run.path / "samples" / f"rollout-{step:06d}.json"
