"""This module holds the sections of reinforcement learning: one an algorithm, and what a rollout is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scaleup.config.fields import Count, Fraction, Int, NotNegative, Positive, Section


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
        """Tells whether the policy is compared with a reference: beta may also be moved from 0."""
        return self.beta > 0 or self.kl_controller == "adaptive"

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


class ReMaxAlgorithm(PolicyGradient):
    """Sets ReMax (Li et al. 2024): rewards to come over the score of the greedy response."""

    type: Literal["remax"]
    gamma: Fraction = 1.0


AlgorithmSettings = Annotated[
    PPOAlgorithm | GRPOAlgorithm | RLOOAlgorithm | ReinforcePPAlgorithm | ReMaxAlgorithm, Field(discriminator="type")
]
