"""This stage is `stage: rl` with the PPO algorithm, whose settings have the names of TRL's PPO trainer."""

from scaleup.stages.rl import run

__all__ = ["run"]
