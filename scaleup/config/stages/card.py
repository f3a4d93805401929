"""This module holds the config of the deployment card: what variants of a model cost and what they can do, beside the
model they come from."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from scaleup.config.evaluation import EvaluationConfig
from scaleup.config.fields import Count, Int, Name, PathText, Section
from scaleup.config.run import RunConfig
from scaleup.config.schema import GenerationConfig, ModelConfig

Variants = Annotated[dict[Name, PathText], Field(min_length=1)]
"""Maps a name for the card -> a Hugging Face folder, or a finished run that made one."""


class CardSettings(Section):
    """Says how much is measured. Quality is that of data.test's first rows; each model's speed and memory are measured
    in a process of its own, one sequence at a time."""

    max_rows: Count = Field(200, description="Rows of data.test.")
    bootstrap_samples: Annotated[Int, Field(ge=100)] = Field(
        1000, description="Drawings of rows with replacement that the intervals come from (Efron 1979)."
    )
    prompt_tokens: Annotated[Int, Field(ge=2)] = Field(128, description="Of the prompt that speed is measured on.")
    new_tokens: Annotated[Int, Field(ge=2)] = Field(32, description="Tokens generated after it.")
    repeats: Count = Field(5, description="Times that both are measured; the card has the medians.")
    rounds: Count = Field(
        1,
        description="Times that this is done for all models in turn; the card has each one's best, for whatever else "
        "a machine does makes it slower.",
    )
    compile: bool = Field(False, description="Measure torch.compile'd inference too: minutes a model on a CPU.")


class CardConfig(RunConfig):
    """Makes a deployment card: quality, size, memory and speed of a model's variants beside the model itself, and
    whether each is a real gain."""

    stand_ins: ClassVar[dict[str, Any]] = {"variants": {"stand-in": "scaleup/stand-in"}}

    stage: Literal["card"]
    model: ModelConfig = Field(description="What the variants come from: they are compared with it.")
    variants: Variants
    card: CardSettings = Field(default_factory=CardSettings)
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="The task's metrics, beside perplexity."
    )
    generation: GenerationConfig = Field(default_factory=GenerationConfig)

    def variant(self, name: str) -> ModelConfig:
        """Returns a variant as a model of its own, loaded as the card's model is."""
        return ModelConfig(path=self.variants[name], trust_remote_code=self.model.trust_remote_code)
