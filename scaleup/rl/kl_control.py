"""The weight of the KL penalty: fixed, or moved until the KL is where it should be."""

from __future__ import annotations


def adapted_kl_coef(kl_coef: float, kl: float, target: float, num_responses: int, horizon: float) -> float:
    """The coefficient after a rollout of `num_responses` with a mean KL of `kl` nats a response: a proportional
    controller whose error is cut at 0.2 (Ziegler et al. 2019, section 2.2)."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * num_responses / horizon)
