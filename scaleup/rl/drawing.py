"""Prompts go in; a rollout comes out: which prompts, by which weights, with how many rounds of further ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scaleup.data.prompts import Prompt
from scaleup.models.rollout import response_seeds
from scaleup.rl import metrics as named
from scaleup.rl.checks import TOLERANCE
from scaleup.rl.experience import Experience, ExperienceMaker
from scaleup.rl.generators import TransformersGenerator
from scaleup.rl.run import RL, RLState
from scaleup.rl.sampling import compare_draws
from scaleup.rl.update import micro_batch_size

COMPARED_PER_RANK = 2
"""Counts the responses on each rank by which a generator is compared with the policy."""


def draw_rollout(training: RL, state: RLState) -> Experience:
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
    each, maker = training.algorithm.settings.num_generations, maker_of(training, needs_logprobs(training))
    asked = training.prompts.drawn(first, count)
    prompts = _repeated(asked, each)
    experience = maker.make(prompts, response_seeds(training.train.seed, rollout, len(prompts), drawn))
    if not training.algorithm.needs_greedy:
        return experience
    return replace(experience, greedy=maker.greedy(asked).repeated(each))


def _repeated(prompts: Sequence[Prompt], each: int) -> list[Prompt]:
    return [prompt for prompt in prompts for _ in range(each)]


def draw_ahead(training: RL, state: RLState, tolerance: float) -> None:
    """Let the next rollout be drawn by the weights of now, while the policy learns from this one, where the generator
    does. Then there is no dynamic sampling."""
    following, each = state.step + 1, training.algorithm.settings.num_generations
    if not training.generator.draws_ahead or following >= training.rollouts.num_rollouts:
        return
    renew(training, state, tolerance)
    size = training.rollouts.batch_size // each
    prompts = _repeated(training.prompts.drawn(following * size, size), each)
    seeds = response_seeds(training.train.seed, following, len(prompts))
    training.generator.draw_ahead([prompt.ids for prompt in prompts], seeds, training.sampling)


def needs_logprobs(training: RL) -> bool:
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


def maker_of(training: RL, of_policy: bool = True) -> ExperienceMaker:
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


def renew(training: RL, state: RLState, tolerance: float) -> None:
    """Give a generator with copies of the weights those of now, and look whether it draws by them."""
    if not training.generator.renew(state.num_updates):
        return
    training.runtime.progress.report("comparing the generator with the policy")
    count = COMPARED_PER_RANK * training.runtime.world
    prompts, is_exact = [training.prompts[place] for place in range(count)], tolerance == TOLERANCE["no"]
    told = compare_draws(maker_of(training), prompts, training.train.seed, tolerance, is_exact)
    training.compared.update(told)
