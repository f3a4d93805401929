"""This module says how small a twin is: the run, on a tiny model, by which `scaleup verify` looks at a config. What a
stage shrinks beside is its planner's answer (`StagePlanner.twin`)."""

from __future__ import annotations

from typing import Any

from scaleup.config.stages.rl import PolicyConfig

NUM_ROWS, LONGEST, NUM_STEPS = 48, 512, 4
"""Bound what a twin reads of each source and of a row, and say how many steps, or rollouts, it takes."""
GLOBAL_BATCH = 8
"""Counts the rows of a step, or the responses of a rollout."""
NUM_ANSWER_TOKENS, NUM_PASSES, NUM_MINI_BATCHES = 8, 2, 2
"""Bound what is generated, and how often a rollout is learned from."""
LEARNING_RATES = {"lora": 0.3, "prompt_tuning": 1.0, "adalora": 3.0}
"""Are those of plain SGD, with which a twin moves far in few steps, by the adapter's type."""


def learning_rate(adapter: object) -> float:
    """Returns the learning rate of a twin's SGD; `adapter` is a config's section, or None."""
    return LEARNING_RATES.get(getattr(adapter, "type", ""), 0.1)


def policy_twin(config: PolicyConfig) -> dict[str, Any]:
    """Returns what a policy's twin has otherwise, by config key: its rollouts are few, short, and scored within its own
    processes."""
    rollouts, num_generations = config.rollout_settings, config.policy_gradient.num_generations
    sizes: dict[str, Any] = {
        "num_rollouts": NUM_STEPS,
        "batch_size": GLOBAL_BATCH,
        "num_passes": min(rollouts.num_passes, NUM_PASSES),
        "num_mini_batches": min(rollouts.num_mini_batches, NUM_MINI_BATCHES),
        "max_new_tokens": min(rollouts.max_new_tokens, NUM_ANSWER_TOKENS),
        "self_checks": False,
        "num_samples": 0,
    }
    if rollouts.response_length_min is not None:
        sizes["response_length_min"] = min(rollouts.response_length_min, NUM_ANSWER_TOKENS // 2)
    changes = {config.key(f"rollouts.{name}"): size for name, size in sizes.items()}
    if num_generations not in (1, 2, 4):
        changes["algorithm.num_generations"] = 4 if num_generations > 4 else 2
    for reward in config.reward_sources:
        source = reward.source
        if source.model is not None:
            changes |= {f"{reward.key}.placement": "colocated", f"{reward.key}.parallel": {}}
        elif source.placement == "http":  # a service gets none of a twin's texts
            keys = (key for key in ("url", "format", "judge", "retries") if key in source.model_fields_set)
            changes |= {f"{reward.key}.{key}": type(source).model_fields[key].default for key in keys}
            changes |= {f"{reward.key}.placement": "function", f"{reward.key}.function": "builtin:length"}
    return changes | {"train.learning_rate": learning_rate(config.adapter) / 2}
