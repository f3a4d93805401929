"""This module holds the config of supervised fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scaleup.config.data import LanguageData
from scaleup.config.schema import GenerationConfig
from scaleup.config.stages.base import SupervisedConfig


class SFTConfig(SupervisedConfig):
    """Fine-tunes a causal or an encoder-decoder model: all of it, or an adapter."""

    stage: Literal["sft"]
    data: LanguageData
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
