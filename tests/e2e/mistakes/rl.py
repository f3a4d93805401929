"""Of stage rl: algorithms and their settings, sizes, several rewards."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from tests.e2e.mistakes.case import Case, bad
from tests.e2e.mistakes.ppo import rewards

RL: dict[str, Any] = {
    "stage": "rl",
    "data.validation": None,
    "data.completion": None,
    "train.max_steps": None,
    "algorithm": {"type": "grpo", "num_generations": 4},
    "rollouts": {"num_rollouts": 2, "batch_size": 8, "max_new_tokens": 8},
    "rewards": [{"name": "score", "placement": "function", "function": "rewards.py:score"}],
}


def rl(name: str, *lines: str, **changes: Any) -> Case:
    """A mistake in a good run of GRPO with a function's rewards."""
    return bad(name, *lines, changes={**deepcopy(RL), **changes}, prepare=rewards())


RL_MISTAKES = [
    rl(
        "nothing of it",
        "error: algorithm: is missing",
        "error: rollouts: is missing",
        "error: rewards: is missing",
        algorithm=None,
        rollouts=None,
        rewards=None,
    ),
    rl(
        "an algorithm that there is not",
        "error: algorithm.type: 'gpro' is not valid -> did you mean 'grpo'?",
        algorithm={"type": "gpro", "num_generations": 4},
    ),
    rl(
        "a setting of another algorithm",
        "error: algorithm.scale_rewards: unknown key",
        algorithm={"type": "rloo", "scale_rewards": "none"},
    ),
    rl(
        "one response has no mean to be over",
        "error: algorithm.num_generations: 1 should be greater than or equal to 2",
        algorithm={"type": "grpo", "num_generations": 1},
    ),
    rl(
        "sizes that do not divide",
        "error: rollouts.batch_size: 10 responses are no whole number of prompts with 4 each -> use a multiple of 4",
        "error: rollouts.batch_size: 10 rows do not divide into 4 mini-batches -> use a multiple of 4",
        "error: rollouts.response_length_min: 9 is more than rollouts.max_new_tokens 8 -> use at most 8",
        **{"rollouts.batch_size": 10, "rollouts.num_mini_batches": 4, "rollouts.response_length_min": 9},
    ),
    rl(
        "settings that contradict one another",
        "error: algorithm.delta: 1.1 is not above 1 + epsilon, 1.2: all that it cuts is clipped already",
        "error: algorithm.kl_controller: adaptive moves the penalty in the reward, and algorithm.kl_in is loss",
        "error: algorithm.soft_punish_cache: 8 is not less than rollouts.max_new_tokens 8",
        **{"algorithm.delta": 1.1, "algorithm.kl_controller": "adaptive", "algorithm.soft_punish_cache": 8},
    ),
    rl(
        "an estimator whose penalty has another gradient, other prompts for a single response, another scale for the "
        "greedy response",
        "error: algorithm.kl_estimator: k2 is not supported with kl_in: reward",
        "error: algorithm.dynamic_sampling: needs several responses to a prompt, whose scores may be equal",
        "error: algorithm.combine: normalized_sum is not supported with remax, whose greedy responses it leaves out",
        algorithm={"type": "remax", "kl_estimator": "k2", "dynamic_sampling": 2, "combine": "normalized_sum"},
    ),
    rl(
        "a weight that cannot be moved",
        "error: algorithm.kl_controller: adaptive multiplies algorithm.beta, and that is 0",
        algorithm={"type": "grpo", "kl_in": "reward", "kl_estimator": "k1", "kl_controller": "adaptive"},
    ),
    rl(
        "a term without a gradient",
        "error: algorithm.kl_estimator: k1 is not supported with kl_in: loss without the ratio: its gradient is 0 on",
        algorithm={"type": "grpo", "beta": 0.1, "kl_estimator": "k1", "use_bias_correction_kl": False},
    ),
    rl(
        "a discount beside the mean of a group",
        "error: algorithm.gamma: 0.9 is not supported with several responses to a prompt, whose mean is of whole",
        algorithm={"type": "reinforce_pp", "num_generations": 2, "gamma": 0.9},
    ),
    rl(
        "rows to learn beside that are not named, and do not divide",
        "error: data.supervised: is needed by the rl stage -> name the rows' file",
        "error: algorithm.ptx_batch_size: 3 rows do not divide over 2 processes -> use a multiple of 2",
        **{"algorithm.ptx_coef": 0.1, "algorithm.ptx_batch_size": 3, "parallel.num_processes": 2},
    ),
    rl(
        "rows to learn beside a trunk for values",
        "error: algorithm.value_model: separate is not supported with algorithm.ptx_coef -> use head, or leave it out",
        algorithm={"type": "ppo", "value_model": "separate", "ptx_coef": 0.1},
        **{"data.supervised": [{"path": "rows.jsonl", "prompt": "{text}", "completion": " {label}"}]},
    ),
    rl(
        "rows to learn beside that are not learned",
        "error: data.supervised: has no meaning for rl -> leave it out, or set algorithm.ptx_coef",
        **{"data.supervised": [{"path": "rows.jsonl", "prompt": "{text}", "completion": " {label}"}]},
    ),
    rl(
        "evaluations that there are none of",
        "error: train.eval_metrics: needs held-out prompts -> give data.test",
        "error: train.load_best_model_at_end: needs held-out prompts -> give data.test",
        "error: train.eval_metrics: perplexity is not supported while a model trains -> measure it with scaleup eval",
        "error: evaluation.labels: is needed for train.eval_metrics",
        "error: train.metric_for_best_model: 'score' is no figure of this run's evaluations -> did you mean 'scores'?",
        **{
            "data.test": None,
            "train.eval_metrics": ["accuracy", "perplexity"],
            "train.load_best_model_at_end": True,
            "train.metric_for_best_model": "score",
        },
    ),
    rl(
        "responses that are compared with nothing, and the best of one evaluation",
        "error: data.prompt: is set without a completion -> set data.completion beside it",
        "error: train.early_stopping_patience: needs evaluation during training -> give train.eval_steps",
        **{
            "data.test": "held.jsonl",
            "train.eval_metrics": ["rouge"],
            "train.early_stopping_patience": 1,
            "train.metric_for_best_model": "rougeL",
        },
    ),
    rl(
        "rewards of one name, and one that counts for nothing",
        "error: rewards.1.name: two rewards are called score -> give each its own name",
        "error: rewards.1.weight: is 0, so its scores count for nothing -> leave the reward out",
        rewards=[RL["rewards"][0], {**RL["rewards"][0], "weight": 0.0}],
    ),
    rl(
        "a reward that is not said, and a function that is not there",
        "error: rewards.0.model: is needed by rewards.0.placement: group",
        "rewards.py defines no scores -> did you mean 'score'?",
        rewards=[{"name": "liked"}, {"name": "short", "placement": "function", "function": "rewards.py:scores"}],
    ),
]

CASES = {"rl": RL_MISTAKES}
