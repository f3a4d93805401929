"""This module holds the config of reward models that are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scaleup.config.data import PreferenceData
from scaleup.config.fields import NotNegative
from scaleup.config.schema import Section, Text
from scaleup.config.stages.base import SupervisedConfig


class RewardModelSettings(Section):
    """Says how a reward model is trained: by Bradley-Terry, -log sigmoid(chosen - rejected - margin) a pair (Ouyang et
    al. 2022, equation 1)."""

    template: Text = Field("{prompt}{response}", description="What the model reads, over {prompt} and {response}.")
    center_coefficient: NotNegative | None = Field(
        None,
        description="Weight of (chosen + rejected)^2, which keeps scores around zero (Eisenstein et al. 2023), e.g. "
        "0.01.",
    )


class RewardConfig(SupervisedConfig):
    """Trains a reward model from preferences: a backbone of any kind with a head of one score, on pairs of a chosen and
    a rejected response. It may start from a sequence classifier of one label, which is trained further."""

    stage: Literal["reward"]
    data: PreferenceData
    reward: RewardModelSettings = Field(default_factory=RewardModelSettings)
