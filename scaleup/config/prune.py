"""What is cut from a model, and by which scores."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from scaleup.config.distill import DistillSettings
from scaleup.config.schema import Count, Float, Int, Section, TrainConfig

LayerNumbers = Annotated[list[Annotated[Int, Field(ge=0)]], Field(min_length=1)]


def _list_or_count(value: Any) -> str:
    return "[list]" if isinstance(value, list) else "[count]"


Layers = Annotated[
    Annotated[LayerNumbers, Tag("[list]")] | Annotated[Count, Tag("[count]")], Discriminator(_list_or_count)
]


class PruneSettings(Section):
    """New sizes, each smaller than the model's; and zeros among the weights that are left. What is not named stays."""

    layers: Layers | None = Field(
        None,
        description="How many to keep, or the numbers of those to keep, from 0; of an encoder-decoder model in each of "
        "its two stacks.",
    )
    layer_score: Literal["block_influence", "angular", "uniform"] = Field(
        "block_influence",
        description="Which layers go: those that change their input least (Men et al. 2024), the run of layers around "
        "which it changes least (Gromov et al. 2024), or evenly spaced ones.",
    )
    intermediate_size: Count | None = Field(None, description="Columns of each MLP.")
    num_key_value_heads: Count | None = Field(
        None, description="Key-value heads, each with the query heads that read it; of T5 its heads."
    )
    head_dim: Count | None = Field(None, description="Width of a head; T5 only (d_kv).")
    sparsity: Annotated[Float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Share of zeros in each matrix of each layer. Stored like any other weights: nothing is saved.",
    )
    pattern: Literal["unstructured", "2:4"] = Field(
        "unstructured", description="2:4: two zeros in every four weights of a row, a sparsity of 0.5."
    )
    sparsity_score: Literal["magnitude", "wanda", "sparsegpt"] = Field(
        "wanda",
        description="Which weights become zeros: the smallest; the smallest times their input's norm (Sun et al. "
        "2023); or by SparseGPT through nvidia-modelopt, 2:4 only.",
    )
    rounds: Count = Field(
        1, description="Cut in so many equal steps, with `recovery` after each: a little at a time costs less quality."
    )
    calibration_rows: Count = Field(128, description="Rows of data.train that scores are measured on.")
    batch_size: Count = Field(8, description="Rows at a time on each process.")

    @property
    def measures_layers(self) -> bool:
        return isinstance(self.layers, int) and self.layer_score != "uniform"

    @property
    def measures_features(self) -> bool:
        """Of the inputs of matrices, to choose MLP columns and heads."""
        return any(size is not None for size in (self.intermediate_size, self.num_key_value_heads, self.head_dim))

    @property
    def measures_weights(self) -> bool:
        """To choose zeros."""
        return self.sparsity is not None and self.sparsity_score != "magnitude"

    @property
    def needs_calibration(self) -> bool:
        return self.measures_layers or self.measures_features or self.measures_weights

    @property
    def is_empty(self) -> bool:
        return self.layers is None and self.sparsity is None and not self.measures_features


class RecoverySettings(Section):
    """Training after each round of cuts, whose teacher is the model as it was before the first."""

    train: TrainConfig
    distill: DistillSettings = Field(default_factory=DistillSettings)
    gradient_checkpointing: bool = False
    control: bool = Field(
        True,
        description="The same rounds and steps once more without the teacher: plain fine-tuning, which tells whether "
        "distillation helps.",
    )
