"""The config of supervised fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scaleup.config.schema import GenerationConfig
from scaleup.config.stages.base import SupervisedConfig


class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning, causal or encoder-decoder: of the whole model, or of an adapter."""

    stage: Literal["sft"]
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
