"""This module holds the config of generation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scaleup.config.adapters import Quantization
from scaleup.config.data import DataConfig
from scaleup.config.evaluation import EvaluationConfig
from scaleup.config.schema import GenerationConfig
from scaleup.config.stages.base import QUANTIZATION, SIDE_BY_SIDE, Adapters, SideBySide


class GenerateConfig(SideBySide):
    """Generates text from a model, for prompts given here or those of data.test."""

    stage: Literal["generate"]
    adapters: Adapters | None = Field(None, description=f"{SIDE_BY_SIDE}: each answers every prompt.")
    quantization: Quantization | None = Field(None, description=QUANTIZATION)
    data: DataConfig = Field(default_factory=DataConfig)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
