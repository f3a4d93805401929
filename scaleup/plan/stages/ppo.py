"""This module plans PPO as a stage: what `stage: rl` plans, by its own keys."""

from __future__ import annotations

from scaleup.config.stages.ppo import PPOConfig
from scaleup.plan.compat import Tested
from scaleup.plan.stages.rl import PolicyPlanner


class PPOPlanner(PolicyPlanner[PPOConfig]):
    tested = Tested(
        adapters=frozenset({"full", "lora"}),
        precisions=frozenset({"no"}),
        also=frozenset(
            {
                *(("full", strategy, None, "bf16") for strategy in ("ddp", "zero3", "fsdp2")),
                *(("lora", strategy, "8bit", "no") for strategy in ("ddp", "zero2")),
                *(("lora", strategy, "4bit", "no") for strategy in ("single", "ddp", "zero3")),
                *(("ia3", strategy, None, "no") for strategy in ("single", "ddp")),
            }
        ),
        kind="PPO of ",
    )


PLANNER = PPOPlanner()
