"""Reward models, PPO, and where its rewards come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scaleup.config.adapters import Quantization
from scaleup.config.schema import (
    Count,
    Float,
    Int,
    MixedPrecision,
    ModelConfig,
    ParallelConfig,
    Port,
    Section,
    Text,
)

Positive = Annotated[Float, Field(gt=0)]
NotNegative = Annotated[Float, Field(ge=0)]
Share = Annotated[Float, Field(ge=0, le=1)]


class PPOSettings(Section):
    """Proximal policy optimization (Schulman et al. 2017) of language models. A step of the run is a rollout: responses
    to some prompts, their rewards, and a few passes over them."""

    num_rollouts: Count
    rollout_batch_size: Count = Field(64, description="Prompts a rollout, over all processes.")
    num_ppo_epochs: Count = Field(4, description="Passes over a rollout.")
    num_mini_batches: Count = Field(1, description="Optimizer steps a pass.")
    max_new_tokens: Count = Field(48, description="Tokens of a response, at most.")
    response_length_min: Count | None = Field(
        None, description="Draw each response's limit evenly between this and max_new_tokens."
    )
    temperature: Positive = 1.0
    kl_coef: NotNegative = Field(0.05, description="Weight of the penalty on leaving the reference model.")
    kl_controller: Literal["fixed", "adaptive"] = Field(
        "fixed", description="adaptive: kl_coef moves until the KL is kl_target (Ziegler et al. 2019)."
    )
    kl_target: Positive = Field(6.0, description="Nats a response.")
    kl_horizon: Positive = Field(10_000.0, description="Responses over which kl_coef adapts.")
    kl_estimator: Literal["k1", "k3"] = Field("k1", description="Of the penalty at a token (Schulman 2020).")
    gamma: Share = 1.0
    lam: Share = 0.95
    cliprange: Positive = 0.2
    cliprange_value: Positive = 0.2
    vf_coef: NotNegative = Field(0.1, description="Weight of the value loss.")
    entropy_coef: NotNegative = Field(0.0, description="Weight of the entropy bonus.")
    whiten_advantages: bool = True
    whiten_rewards: bool = False
    target_kl: Positive | None = Field(
        None, description="End the passes over a rollout when the policy has moved so far: mean approximate KL a token."
    )
    reward_clip: Positive | None = Field(None, description="Scores are cut to this size, after normalisation.")
    missing_eos_penalty: NotNegative | None = Field(
        None, description="Taken off the score of a response that ran into its limit."
    )
    value_model: Literal["head", "separate"] = Field(
        "head", description="A head on the policy's trunk, or a trunk of its own that starts as the policy's."
    )
    self_checks: bool = Field(True, description="Stop when what must hold in every rollout does not.")
    num_samples: Annotated[Int, Field(ge=0)] = Field(
        8, description="Held-out responses kept as text, before and after."
    )


class RewardModelSettings(Section):
    """How a reward model is trained: Bradley-Terry, -log sigmoid(chosen - rejected - margin) a pair (Ouyang et al.
    2022, equation 1)."""

    template: Text = Field("{prompt}{response}", description="What the model reads, over {prompt} and {response}.")
    center_coefficient: NotNegative | None = Field(
        None,
        description="Weight of (chosen + rejected)^2, which keeps scores around zero (Eisenstein et al. 2023), e.g. "
        "0.01.",
    )


class RewardSource(Section):
    """Where scores come from: a reward model in a process group of its own, one in every policy process, a service, or
    a Python function. All give the same scores for the same texts."""

    placement: Literal["group", "colocated", "http", "function"] = "group"
    model: ModelConfig | None = Field(
        None, description="For group and colocated: a finished reward run, or a sequence classifier."
    )
    label: Text | None = Field(None, description="Of a classifier with several labels: the one that is rewarded.")
    score: Literal["logit", "probability"] = "logit"
    template: Text | None = Field(
        None,
        description="What the reward model reads, over {prompt} and {response}; by default what it was trained on, or "
        "the one after the other.",
    )
    max_length: Annotated[Int, Field(ge=2)] | None = Field(
        None, description="Tokens that the reward model reads, the last ones; by default what it was trained on."
    )
    normalize: bool = Field(True, description="By the mean and spread that a reward run saved with its model.")
    batch_size: Count = Field(16, description="Texts a forward pass.")
    quantization: Quantization | None = None
    mixed_precision: MixedPrecision = "no"
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="Of the reward group.")
    url: Text | None = Field(None, description="For http: where prompts and completions are posted as JSON.")
    function: Text | None = Field(
        None, description="For function: FILE.py:NAME or MODULE:NAME, called as f(prompts, completions, **columns)."
    )
    own_nodes: bool = Field(
        False, description="The reward group has a node of its own, after the policy's; else it is on the first one."
    )
    timeout_seconds: Positive = Field(120.0, description="A request that takes longer counts as lost.")
    reconnect_seconds: Positive = Field(
        600.0, description="How long the policy waits for a reward group, or service, that is gone."
    )
    bridge_port: Port | None = Field(
        None, description="Where the policy listens for the reward group; by default a free port at each start."
    )
    max_restarts: Annotated[Int, Field(ge=0)] = Field(
        3, description="How often a reward group that died is started again while the policy waits."
    )
