"""The stages and what each one's config holds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from scaleup.config.adapters import AdapterConfig, Quantization
from scaleup.config.schema import (
    TRACKERS,
    DataConfig,
    EvaluationConfig,
    GenerationConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)

QUANTIZATION = "Matrices of the base model in 8 bits (LLM.int8) or 4 (nf4, quantized twice), through bitsandbytes."


class SFTConfig(RunConfig):
    """Supervised fine-tuning, causal or encoder-decoder: of the whole model, or of an adapter."""

    stage: Literal["sft"]
    train: TrainConfig
    adapter: AdapterConfig | None = Field(
        None, description="Train this instead of the whole model. A model.path that is an adapter is trained further."
    )
    quantization: Quantization | None = Field(None, description=QUANTIZATION)
    gradient_checkpointing: bool = False
    report_to: list[TRACKERS] = Field(
        default_factory=list, description="Trackers beside TensorBoard, through Accelerate."
    )
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="What `scaleup evaluate RUN` measures."
    )
    generation: GenerationConfig = Field(default_factory=GenerationConfig)


class EvaluateConfig(RunConfig):
    """Metrics of a model on held-out rows, beside those of a baseline where one is named."""

    stage: Literal["evaluate"]
    baseline: ModelConfig | None = Field(None, description="The model to compare with: the 'before' column.")
    quantization: Quantization | None = Field(None, description=QUANTIZATION)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)


class GenerateConfig(RunConfig):
    """Text from a model, for prompts given here or those of data.test."""

    stage: Literal["generate"]
    quantization: Quantization | None = Field(None, description=QUANTIZATION)
    data: DataConfig = Field(default_factory=DataConfig)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)


STAGES: dict[str, type[RunConfig]] = {"sft": SFTConfig, "evaluate": EvaluateConfig, "generate": GenerateConfig}

AnyConfig = Annotated[SFTConfig | EvaluateConfig | GenerateConfig, Field(discriminator="stage")]


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    schema = TypeAdapter(AnyConfig).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "scaleup run config", **schema}
