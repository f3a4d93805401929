"""This module plans PPO as a stage: what `stage: rl` plans, by its own keys."""

from __future__ import annotations

from dataclasses import replace

from scaleup.config.stages.ppo import PPOConfig
from scaleup.plan.stages.rl import PolicyPlanner


class PPOPlanner(PolicyPlanner[PPOConfig]):
    tested = replace(PolicyPlanner.tested, kind="PPO of ")


PLANNER = PPOPlanner()
