"""A prepared run goes in; where it stands in the end comes out. This is the loop of every algorithm: rollouts, their
rewards, passes over them; time, logging, evaluation, checkpoints and stopping. The maths is in `algorithms`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch.optim.lr_scheduler import LRScheduler

from scaleup.artifacts.files import write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.timeline import UNNOTED, Timeline
from scaleup.artifacts.train_state import TrainState
from scaleup.bridge.client import StopWhileWaiting
from scaleup.config.algorithms import RolloutSettings
from scaleup.config.schema import OptimizationConfig
from scaleup.data.prompts import Prompt, PromptOrder
from scaleup.distributed.runtime import Runtime
from scaleup.models.beside import unwrap
from scaleup.models.rollout import HELD_OUT, Responses, Sampling, response_seeds
from scaleup.rl import metrics as named
from scaleup.rl.advantages import adapted_kl_coef
from scaleup.rl.algorithms import Algorithm
from scaleup.rl.checks import TOLERANCE, check_equal_ranks, check_experience, check_steps, tolerance_of
from scaleup.rl.experience import Experience, ExperienceMaker, compute_advantages, samples_of
from scaleup.rl.generators import Generator, TransformersGenerator
from scaleup.rl.rewards.interface import RewardSet
from scaleup.rl.sampling import compare_draws, sampling_metrics
from scaleup.rl.supervised import SupervisedTerm
from scaleup.rl.update import Updater, micro_batch_size
from scaleup.train.checkpoint import Checkpointer
from scaleup.train.fit import finite, is_due, stop_run
from scaleup.train.metrics import MetricsLog, peak_memory_mib

COMPARED_PER_RANK = 2
"""Counts the responses on each rank by which a generator is compared with the policy."""
NAMES = {
    "ppo": (named.ppo_rollout_metrics, named.ppo_update_metrics),
    "grpo": (named.rollout_metrics, named.update_metrics),
}
"""Maps whose metric names a run has, of TRL's trainers -> what computes a rollout's, and names an update's."""


@dataclass
class RLState(TrainState):
    """Tells where a run stands; `step` counts rollouts."""

    kl_coef: float | None = None
    num_updates: int = 0
    """Counts the optimizer steps."""
    num_refilled: int = 0
    """Counts the prompts that were asked beside those of the rollouts (dynamic sampling)."""
    evaluated: int | None = None
    """Is the number of rollouts at the last evaluation; -1 where there was none yet, None where nobody knows."""
    ahead: dict[str, Any] | None = None
    """Holds the responses of the next rollout where they were drawn ahead."""


class RLCheckpointer(Checkpointer[RLState]):
    state_class = RLState
    generator: Generator

    def save(self, state: RLState) -> None:
        """Write a checkpoint as any other, with what is drawn ahead."""
        state.ahead = self.generator.kept()
        super().save(state)


@dataclass
class RL:
    """Holds a run of reinforcement learning, prepared to start."""

    name: str
    algorithm: Algorithm
    rollouts: RolloutSettings
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
    rewards: RewardSet
    generator: Generator
    sampling: Sampling
    tokenizer: Any
    quantization: str | None = None
    supervised: SupervisedTerm | None = None
    names: Literal["grpo", "ppo"] = "grpo"
    """Says which of TRL's trainers the metrics are named after."""
    timeline: Timeline = UNNOTED
    compared: dict[str, float] = field(default_factory=dict)
    """Holds what the last comparison of generator and policy told."""


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
        _evaluate_if_due(training, metrics, state, updater.tolerance)
    while state.step < rollouts.num_rollouts:
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
        _evaluate_if_due(training, metrics, state, updater.tolerance)
        stop, save = runtime.sum(runtime.stop.requested, checkpointer.is_time())
        if save or is_due(train.save_steps, state.step, rollouts.num_rollouts):
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
        _renew(training, state, updater.tolerance)
    experience = _drawn(training, state)
    _draw_ahead(training, state, updater.tolerance)
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


def _drawn(training: RL, state: RLState) -> Experience:
    """Draw a rollout. With dynamic sampling, prompts whose responses have equal scores give way to further ones, in the
    order of the data, until there are as many as a rollout has or `dynamic_sampling` rounds are over."""
    settings = training.algorithm.settings
    each, size = settings.num_generations, training.rollouts.batch_size // settings.num_generations
    first, taken = state.step * size + state.num_refilled, size
    experience = _asked(training, state.step, first, size, 0)
    for _ in range(settings.dynamic_sampling):
        missing = int(named.equal_groups(experience.scores, each).sum()) - (taken - size)
        if missing <= 0:
            break
        count = _even(missing, each, training.runtime.world)
        more = _asked(training, state.step, first + taken, count, taken * each)
        experience, taken = experience.joined(more), taken + count
    if taken == size:
        return experience
    state.num_refilled += taken - size
    is_equal = named.equal_groups(experience.scores, each).tolist()
    kept = sorted(sorted(range(taken), key=lambda group: (is_equal[group], group))[:size])
    return experience.rows([group * each + row for group in kept for row in range(each)])


def _even(prompts: int, each: int, world: int) -> int:
    """Return how many prompts, at least so many, have responses that divide evenly over ranks."""
    while prompts * each % world:
        prompts += 1
    return prompts


def _asked(training: RL, rollout: int, first: int, count: int, drawn: int) -> Experience:
    """Return the responses to `count` prompts of the data from its `first` on, each with as many as a group has;
    `drawn` responses of this rollout were drawn before."""
    each, maker = training.algorithm.settings.num_generations, _maker(training, _needs_logprobs(training))
    asked = training.prompts.drawn(first, count)
    prompts = _repeated(asked, each)
    experience = maker.make(prompts, response_seeds(training.train.seed, rollout, len(prompts), drawn))
    if not training.algorithm.needs_greedy:
        return experience
    return replace(experience, greedy=maker.greedy(asked).repeated(each))


def _repeated(prompts: Sequence[Prompt], each: int) -> list[Prompt]:
    return [prompt for prompt in prompts for _ in range(each)]


def _draw_ahead(training: RL, state: RLState, tolerance: float) -> None:
    """Let the next rollout be drawn by the weights of now, while the policy learns from this one, where the generator
    does. Then there is no dynamic sampling."""
    following, each = state.step + 1, training.algorithm.settings.num_generations
    if not training.generator.draws_ahead or following >= training.rollouts.num_rollouts:
        return
    _renew(training, state, tolerance)
    size = training.rollouts.batch_size // each
    prompts = _repeated(training.prompts.drawn(following * size, size), each)
    seeds = response_seeds(training.train.seed, following, len(prompts))
    training.generator.draw_ahead([prompt.ids for prompt in prompts], seeds, training.sampling)


def _needs_logprobs(training: RL) -> bool:
    """Return whether the policy's own log-probabilities are needed before a rollout is learned from: where that is one
    optimizer step, and nothing else asks for them, they are those that the step computes."""
    settings, rollouts = training.algorithm.settings, training.rollouts
    return (
        rollouts.num_passes * rollouts.num_mini_batches > 1
        or (settings.beta > 0 and settings.kl_in == "reward")
        or settings.top_entropy_quantile < 1
        or training.algorithm.needs_values
        or not isinstance(training.generator, TransformersGenerator)
    )


def _maker(training: RL, of_policy: bool = True) -> ExperienceMaker:
    return ExperienceMaker(
        training.runtime,
        training.model,
        training.tokenizer,
        training.sampling,
        training.rewards,
        generator=training.generator,
        forward_batch_size=micro_batch_size(training.train),
        level=training.algorithm.settings.importance_sampling_level,
        timeline=training.timeline,
        of_policy=of_policy,
    )


def _renew(training: RL, state: RLState, tolerance: float) -> None:
    """Give a generator with copies of the weights those of now, and look whether it draws by them."""
    if not training.generator.renew(state.num_updates):
        return
    training.runtime.progress.report("comparing the generator with the policy")
    count = COMPARED_PER_RANK * training.runtime.world
    prompts, is_exact = [training.prompts[place] for place in range(count)], tolerance == TOLERANCE["no"]
    told = compare_draws(_maker(training), prompts, training.train.seed, tolerance, is_exact)
    training.compared.update(told)


def _adapt(training: RL, state: RLState, kl: float) -> None:
    settings = training.algorithm.settings
    if settings.kl_controller == "adaptive":
        assert state.kl_coef is not None
        size = training.rollouts.batch_size
        state.kl_coef = adapted_kl_coef(state.kl_coef, kl, settings.kl_target, size, settings.kl_horizon)


def _evaluate_if_due(training: RL, metrics: MetricsLog, state: RLState, tolerance: float) -> None:
    is_at_edge = state.step in (0, training.rollouts.num_rollouts)
    if is_at_edge or is_due(training.train.eval_steps, state.step, training.rollouts.num_rollouts):
        if state.evaluated != state.step:
            _evaluate(training, metrics, state, tolerance)
        state.evaluated = state.step


def _evaluate(training: RL, metrics: MetricsLog, state: RLState, tolerance: float) -> None:
    """Evaluate on the held-out prompts, with the same seeds each time; some responses are kept as text."""
    if not training.held_out:
        return
    _renew(training, state, tolerance)
    training.runtime.progress.report("answering held-out prompts")
    world = training.runtime.world
    filled = [*training.held_out, *[training.held_out[-1]] * (-len(training.held_out) % world)]  # as many on each rank
    seeds = response_seeds(training.train.seed, HELD_OUT, len(filled))
    shows_kl = unwrap(training.model).has_reference or not isinstance(training.generator, TransformersGenerator)
    experience = _maker(training, shows_kl).make(filled, seeds)
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
        write_json(file, rows[: training.rollouts.num_samples])


def samples_file(run: RunFolder, step: int) -> Path:
    return run.path / "samples" / f"rollout-{step:06d}.json"
