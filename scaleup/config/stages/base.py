"""This module holds sections shared by the configs of several stages."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field

from scaleup.config.adapters import AdapterConfig, Quantization
from scaleup.config.evaluation import EvaluationConfig
from scaleup.config.fields import Int, Name, PathText, Section, absolute, absolute_folder
from scaleup.config.run import RunConfig
from scaleup.config.schema import TRACKERS, OptimizationConfig, TrainConfig

QUANTIZATION = "Matrices of the base model in 8 bits (LLM.int8) or 4 (nf4, quantized twice), through bitsandbytes."
SIDE_BY_SIDE = "Several adapters of the base that model.path names, each a folder or a finished run"

CONSTITUTION = "A YAML file of principles, see docs/stages/constitutional.md; by default three, of this project's own."

Adapters = Annotated[dict[Name, PathText], Field(min_length=1)]
"""Maps a name for the results -> an adapter."""


class SideBySide(RunConfig):
    """Serves as a mixin of the configs that have a field `adapters`, whose folders become absolute paths."""

    def with_absolute_paths(self) -> Self:
        config = super().with_absolute_paths()
        adapters: dict[str, str] | None = getattr(self, "adapters", None)
        if not adapters:
            return config
        return config.model_copy(update={"adapters": {name: absolute_folder(path) for name, path in adapters.items()}})


class TrainingConfig(RunConfig):
    """Holds what every stage that trains a model has: of the whole model, or of an adapter."""

    train: OptimizationConfig = Field(default_factory=OptimizationConfig)
    adapter: AdapterConfig | None = Field(
        None, description="Train this instead of the whole model. A model.path that is an adapter is trained further."
    )
    quantization: Quantization | None = Field(None, description=QUANTIZATION)
    gradient_checkpointing: bool = False
    report_to: list[TRACKERS] = Field(
        default_factory=list, description="Trackers beside TensorBoard, through Accelerate."
    )


class SupervisedConfig(TrainingConfig):
    """Holds what the stages have in common that learn from rows as they are."""

    train: TrainConfig
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="What `scaleup evaluate RUN` measures."
    )

    @property
    def copies_a_weight(self) -> int:
        """Returns how many float32 numbers the stage itself keeps where the optimizer keeps a trained weight."""
        return 0

    @property
    def passes_a_micro_batch(self) -> int:
        """Returns how many forward and backward passes a micro-batch of new rows comes with."""
        return 1


class ConstitutionSection(Section):
    """Serves as a mixin of the sections that name a file of principles."""

    constitution: PathText | None = Field(None, description=CONSTITUTION)
    seed: Annotated[Int, Field(ge=0)] = Field(0, description="Draws a principle for each row.")

    def with_absolute_paths(self) -> Self:
        named = self.constitution
        return self if named is None else self.model_copy(update={"constitution": absolute(named)})
