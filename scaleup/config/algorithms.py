"""This module holds the sections of reinforcement learning: one an algorithm, and what a rollout is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import Field

from scaleup.config.fields import Count, Fraction, Int, NotNegative, Positive, Section
from scaleup.errors import Problem


class RolloutSettings(Section):
    """Says how responses are drawn and how often they are learned from. A step of the run is a rollout: responses to
    some prompts, their rewards, and a few passes over them."""

    num_rollouts: Count
    batch_size: Count = Field(
        64, description="Responses of a rollout, over all processes: prompts x algorithm.num_generations."
    )
    num_passes: Count = Field(1, description="Passes over a rollout: mu of GRPO, the epochs of PPO.")
    num_mini_batches: Count = Field(1, description="Optimizer steps a pass.")
    max_new_tokens: Count = Field(48, description="Tokens of a response, at most.")
    response_length_min: Count | None = Field(
        None, description="Draw each response's limit evenly between this and max_new_tokens."
    )
    temperature: Positive = 1.0
    target_kl: Positive | None = Field(
        None, description="End the passes over a rollout when the policy has moved so far: mean approximate KL a token."
    )
    self_checks: bool = Field(True, description="Stop when what must hold in every rollout does not.")
    num_samples: Annotated[Int, Field(ge=0)] = Field(
        8, description="Held-out responses kept as text, before and after."
    )

    def problems(self, num_generations: int, world: int, key: Callable[[str], str]) -> Iterator[Problem]:
        """Yields sizes that do not divide over mini-batches, prompts and `world` processes; `key` tells where a config
        has `rollouts.KEY`."""
        mini_batch, rest = divmod(self.batch_size, self.num_mini_batches)
        size, most = key("rollouts.batch_size"), key("rollouts.max_new_tokens")
        if rest:
            what = f"{self.batch_size} rows do not divide into {self.num_mini_batches} mini-batches"
            yield Problem(size, what, f"use a multiple of {self.num_mini_batches * world}")
        elif mini_batch % world:
            what = f"mini-batches of {mini_batch} rows do not divide over {world} processes"
            remedy = f"use a {size} that is a multiple of {self.num_mini_batches * world}"
            yield Problem(key("rollouts.num_mini_batches"), what, remedy)
        if self.batch_size % num_generations:
            what = f"{self.batch_size} responses are no whole number of prompts with {num_generations} each"
            yield Problem(size, what, f"use a multiple of {num_generations}, algorithm.num_generations")
        if self.response_length_min is not None and self.response_length_min > self.max_new_tokens:
            what = f"{self.response_length_min} is more than {most} {self.max_new_tokens}"
            yield Problem(key("rollouts.response_length_min"), what, f"use at most {self.max_new_tokens}")

    @property
    def num_optimizer_steps(self) -> int:
        """Returns the optimizer steps of a run that `target_kl` does not shorten: rollouts x passes x mini-batches."""
        return self.num_rollouts * self.num_passes * self.num_mini_batches


class PolicyGradient(Section):
    """Holds what all algorithms have: the clipped surrogate objective (Schulman et al. 2017, eq. 7), the KL divergence
    to the reference, and what is done to scores."""

    num_generations: Count = Field(1, description="Responses to each prompt.")
    beta: NotNegative = Field(
        0.05, description="Weight of the KL divergence to the reference model; at 0 there is no reference in memory."
    )
    kl_in: Literal["reward", "loss"] = Field(
        "reward",
        description="reward: a penalty at each token (Ziegler et al. 2019, eq. 2); loss: a term with a gradient (Shao "
        "et al. 2024, eq. 3).",
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k1", description="Of the KL divergence at a token (Schulman 2020)."
    )
    use_bias_correction_kl: bool = Field(
        True,
        description="With kl_in: loss, the KL term is multiplied by the ratio, which makes its gradient unbiased "
        "(DeepSeek-V3.2, 2025).",
    )
    kl_controller: Literal["fixed", "adaptive"] = Field(
        "fixed", description="adaptive: beta moves until the KL is kl_target (Ziegler et al. 2019, section 2.2)."
    )
    kl_target: Positive = Field(6.0, description="Nats a response.")
    kl_horizon: Positive = Field(10_000.0, description="Responses over which beta adapts.")
    epsilon: Positive = Field(0.2, description="Ratios of probabilities are clipped below 1 - epsilon.")
    epsilon_high: Positive | None = Field(
        None,
        description="And above 1 + epsilon_high; by default epsilon. DAPO's clip-higher (Yu et al. 2025) has 0.28.",
    )
    delta: Positive | None = Field(
        None,
        description="Ratios are cut to this before anything else (INTELLECT-2, two-sided clipping): over 1 + epsilon.",
    )
    importance_sampling_level: Literal["token", "sequence", "trajectory"] = Field(
        "token",
        description="Whose probabilities a ratio is of: a token's; sequence: the geometric mean over a response's "
        "(GSPO, Zheng et al. 2025, eq. 7); trajectory: their product.",
    )
    loss_type: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="Mean over all tokens of a mini-batch (DAPO, eq. 8); sequence: over a response's tokens, then over "
        "responses (GRPO, Shao et al. 2024, eq. 3); constant: the sum over responses x max_new_tokens (Dr. GRPO, Liu "
        "et al. 2025).",
    )
    entropy_coef: NotNegative = Field(0.0, description="Weight of the entropy bonus.")
    top_entropy_quantile: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Only this share of a mini-batch's tokens, those of highest entropy, are learned from (Wang et "
        "al. 2025, Beyond the 80/20 rule).",
    )
    mask_truncated_completions: bool = Field(
        False, description="Nothing is learned from responses that ran into their limit (DAPO's overlong filtering)."
    )
    soft_punish_cache: Count | None = Field(
        None, description="Tokens before max_new_tokens over which a penalty grows from 0 to 1 (DAPO, eq. 13)."
    )
    missing_eos_penalty: NotNegative | None = Field(
        None, description="Taken off the score of a response that ran into its limit."
    )
    reward_clip: Positive | None = Field(None, description="Scores are cut to this size, after they are combined.")
    combine: Literal["sum", "normalized_sum"] = Field(
        "sum",
        description="Rewards are added by their weights; normalized_sum: each is normalised first, over a prompt's "
        "responses or, where there is one, over the rollout (GDPO, Liu et al. 2026).",
    )
    ptx_coef: NotNegative = Field(
        0.0, description="Weight of the cross-entropy of rows of data.supervised (PPO-ptx, Ouyang et al. 2022, eq. 2)."
    )
    ptx_batch_size: Count = Field(8, description="Rows of it an optimizer step, over all processes.")
    dynamic_sampling: Annotated[Int, Field(ge=0)] = Field(
        0,
        description="So often, at most, more prompts are asked in place of those whose responses have equal scores "
        "(DAPO, eq. 11).",
    )

    @property
    def has_reference(self) -> bool:
        """Tells whether the policy is compared with a reference."""
        return self.beta > 0

    def problems(
        self, rollouts: RolloutSettings, world: int, key: Callable[[str], str] = lambda name: name
    ) -> Iterator[Problem]:
        """Yields settings that contradict one another or the rollouts', for `world` processes; `key` tells where a
        config has `algorithm.KEY` or `rollouts.KEY`."""
        yield from rollouts.problems(self.num_generations, world, key)
        if self.delta is not None and self.delta <= self.clip_range[1]:
            most = self.clip_range[1]
            what = f"{self.delta:g} is not above 1 + epsilon, {most:g}: all that it cuts is clipped already"
            yield Problem("algorithm.delta", what, "use more, or leave it out")
        yield from self._kl_problems()
        if self.soft_punish_cache is not None and self.soft_punish_cache >= rollouts.max_new_tokens:
            what = f"{self.soft_punish_cache} is not less than rollouts.max_new_tokens {rollouts.max_new_tokens}"
            yield Problem("algorithm.soft_punish_cache", what, "use fewer tokens")
        if self.ptx_coef and self.ptx_batch_size % world:
            what = f"{self.ptx_batch_size} rows do not divide over {world} processes"
            yield Problem("algorithm.ptx_batch_size", what, f"use a multiple of {world}")
        if self.dynamic_sampling and self.num_generations == 1:
            what = "needs several responses to a prompt, whose scores may be equal"
            yield Problem("algorithm.dynamic_sampling", what, "set algorithm.num_generations, or leave it out")

    def _kl_problems(self) -> Iterator[Problem]:
        if self.kl_in == "reward" and self.kl_estimator == "k2":
            what = "k2 is not supported with kl_in: reward: as a penalty it is half the squared log-ratio, not the KL"
            yield Problem("algorithm.kl_estimator", what, "use k1 or k3, or kl_in: loss")
        if self.kl_in == "loss" and self.kl_estimator == "k1" and not self.use_bias_correction_kl:
            what = "k1 is not supported with kl_in: loss without the ratio: its gradient is 0 on the mean"
            yield Problem("algorithm.kl_estimator", what, "use k2 or k3, or use_bias_correction_kl: true")
        if self.kl_controller == "adaptive" and self.kl_in == "loss":
            what = "adaptive moves the penalty in the reward, and algorithm.kl_in is loss"
            yield Problem("algorithm.kl_controller", what, "use fixed, or kl_in: reward")
        elif self.kl_controller == "adaptive" and self.beta == 0:
            what = "adaptive multiplies algorithm.beta, and that is 0"
            yield Problem("algorithm.kl_controller", what, "use fixed, or another beta")

    @property
    def clip_range(self) -> tuple[float, float]:
        return 1 - self.epsilon, 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)


class PPOAlgorithm(PolicyGradient):
    """Sets proximal policy optimization (Schulman et al. 2017): advantages over the values of a head beside."""

    type: Literal["ppo"]
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    cliprange_value: Positive = 0.2
    vf_coef: NotNegative = Field(0.1, description="Weight of the value loss.")
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    value_model: Literal["head", "separate"] = Field(
        "head", description="A head on the policy's trunk, or a trunk of its own that starts as the policy's."
    )

    def problems(
        self, rollouts: RolloutSettings, world: int, key: Callable[[str], str] = lambda name: name
    ) -> Iterator[Problem]:
        yield from super().problems(rollouts, world, key)
        if self.value_model == "separate" and self.ptx_coef:
            what = "separate is not supported with algorithm.ptx_coef"
            yield Problem(key("algorithm.value_model"), what, "use head, or leave it out")


class GRPOAlgorithm(PolicyGradient):
    """Sets group relative policy optimization (Shao et al. 2024): advantages over the mean score of a prompt's
    responses."""

    type: Literal["grpo"]
    num_generations: Annotated[Int, Field(ge=2)] = Field(8, description="Responses to each prompt.")
    beta: NotNegative = Field(0.0, description="Weight of the KL divergence; at 0 there is no reference in memory.")
    kl_in: Literal["reward", "loss"] = "loss"
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group",
        description="Advantages are divided by the spread of the prompt's scores (eq. 1), by that of the rollout's, or "
        "not (Dr. GRPO).",
    )


class RLOOAlgorithm(PolicyGradient):
    """Sets REINFORCE leave-one-out (Ahmadian et al. 2024): a response's advantage is over the mean score of the
    prompt's other ones (eq. 8)."""

    type: Literal["rloo"]
    num_generations: Annotated[Int, Field(ge=2)] = Field(2, description="Responses to each prompt.")
    importance_sampling_level: Literal["token", "sequence", "trajectory"] = "trajectory"
    loss_type: Literal["token", "sequence", "constant"] = "sequence"
    normalize_advantages: bool = False


class ReinforcePPAlgorithm(PolicyGradient):
    """Sets REINFORCE++ (Hu et al. 2025): rewards to come, normalised over the rollout, in place of values; with several
    responses to a prompt less their mean score (REINFORCE++-baseline)."""

    type: Literal["reinforce_pp"]
    beta: NotNegative = Field(0.01, description="Weight of the KL divergence; at 0 there is no reference in memory.")
    gamma: Fraction = 1.0

    def problems(
        self, rollouts: RolloutSettings, world: int, key: Callable[[str], str] = lambda name: name
    ) -> Iterator[Problem]:
        yield from super().problems(rollouts, world, key)
        if self.num_generations > 1 and self.gamma != 1:
            what = f"{self.gamma:g} is not supported with several responses to a prompt, whose mean is of whole scores"
            yield Problem("algorithm.gamma", what, "use 1, or num_generations: 1")


class ReMaxAlgorithm(PolicyGradient):
    """Sets ReMax (Li et al. 2024): rewards to come over the score of the greedy response."""

    type: Literal["remax"]

    def problems(
        self, rollouts: RolloutSettings, world: int, key: Callable[[str], str] = lambda name: name
    ) -> Iterator[Problem]:
        yield from super().problems(rollouts, world, key)
        if self.combine == "normalized_sum":
            what = "normalized_sum is not supported with remax, whose greedy responses it leaves out"
            yield Problem("algorithm.combine", what, "use sum, or another algorithm")


AlgorithmSettings = Annotated[
    PPOAlgorithm | GRPOAlgorithm | RLOOAlgorithm | ReinforcePPAlgorithm | ReMaxAlgorithm, Field(discriminator="type")
]
