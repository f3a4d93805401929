"""This module holds the config of an evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scaleup.config.adapters import Quantization
from scaleup.config.evaluation import EvaluationConfig
from scaleup.config.fields import Name
from scaleup.config.schema import GenerationConfig, ModelConfig
from scaleup.config.stages.base import QUANTIZATION, SIDE_BY_SIDE, Adapters, SideBySide


class EvaluateConfig(SideBySide):
    """Measures a model on held-out rows, beside a baseline where one is named."""

    stage: Literal["evaluate"]
    baseline: ModelConfig | None = Field(None, description="The model to compare with: the 'before' column.")
    baseline_chat_template: Literal["data", "own"] = Field(
        "data",
        description="What the baseline reads conversations by: data.chat_template, as the model does, or its own "
        "template where it has one, as a teacher does.",
    )
    adapters: Adapters | None = Field(
        None, description=f"{SIDE_BY_SIDE}: a column for each name, the base is the 'before' column."
    )
    models: Annotated[dict[Name, ModelConfig], Field(min_length=1)] | None = Field(
        None, description="Other models: a column for each name, and `model` is the 'before' column."
    )
    quantization: Quantization | None = Field(None, description=QUANTIZATION)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)

    @property
    def columns(self) -> dict[str, tuple[str, ModelConfig]]:
        """Returns the models that are loaded one after another: column -> the model's config key, and the model. The
        first is what the others are compared with."""
        if self.models:
            others = {name: (f"models.{name}", model) for name, model in self.models.items()}
            return {"baseline": ("model", self.model), **others}
        measured = {"model": ("model", self.model)}
        return measured if self.baseline is None else {"baseline": ("baseline", self.baseline), **measured}
