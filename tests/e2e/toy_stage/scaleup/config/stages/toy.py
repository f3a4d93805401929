"""The config of the toy stage: supervised fine-tuning on smoothed labels (Szegedy et al. 2016, section 7)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from scaleup.config.schema import Float, GenerationConfig, Section
from scaleup.config.stages.base import SupervisedConfig


class ToySettings(Section):
    label_smoothing: Annotated[Float, Field(ge=0, lt=1)] = Field(description="Share of the uniform distribution.")


class ToyConfig(SupervisedConfig):
    """Supervised fine-tuning on smoothed labels."""

    stand_ins: ClassVar[dict[str, Any]] = {"toy": {"label_smoothing": 0.1}, "label_smoothing": 0.1}

    stage: Literal["toy"]
    toy: ToySettings
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
