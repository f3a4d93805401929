"""This module holds the config of pruning: the sizes of what is left, and the scores that choose it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from scaleup.config.data import DataConfig
from scaleup.config.fields import MAX_SHARD_SIZE, Count, Float, Int, Section, ShardSize
from scaleup.config.run import RunConfig
from scaleup.config.schema import TrainConfig
from scaleup.config.stages.distill import DistillConfig, DistillSettings

LayerNumbers = Annotated[list[Annotated[Int, Field(ge=0)]], Field(min_length=1)]


def _list_or_count(value: Any) -> str:
    return "[list]" if isinstance(value, list) else "[count]"


Layers = Annotated[
    Annotated[LayerNumbers, Tag("[list]")] | Annotated[Count, Tag("[count]")], Discriminator(_list_or_count)
]


class PruneSettings(Section):
    """Holds new sizes, each smaller than the model's, and zeros among the weights that are left. What is not named
    stays."""

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
    max_shard_size: ShardSize = Field(
        MAX_SHARD_SIZE,
        description="The most that a file of the cut weights has; recovery.train says it of what is trained again.",
    )

    @property
    def measures_layers(self) -> bool:
        return isinstance(self.layers, int) and self.layer_score != "uniform"

    @property
    def measures_features(self) -> bool:
        """Returns whether inputs of matrices are measured, to choose MLP columns and heads."""
        return any(size is not None for size in (self.intermediate_size, self.num_key_value_heads, self.head_dim))

    @property
    def measures_weights(self) -> bool:
        """Returns whether inputs of matrices are measured to choose zeros."""
        return self.sparsity is not None and self.sparsity_score != "magnitude"

    @property
    def needs_calibration(self) -> bool:
        return self.measures_layers or self.measures_features or self.measures_weights

    def in_rounds(self, whole: Mapping[str, int]) -> list[PruneSettings]:
        """Returns what each round cuts, in equal steps from the model's sizes (`whole`, by the names of these settings)
        to the configured ones."""
        wanted = {key: size for key in whole if isinstance(size := getattr(self, key), int)}
        steps = []
        for number in range(1, self.rounds + 1):
            part = number / self.rounds
            sizes = {key: whole[key] - round(part * (whole[key] - size)) for key, size in wanted.items()}
            steps.append(self.model_copy(update={**sizes, "rounds": 1}))
        return steps

    @property
    def is_empty(self) -> bool:
        return self.layers is None and self.sparsity is None and not self.measures_features


class RecoverySettings(Section):
    """Trains after each round of cuts, with the model as it was before the first as the teacher."""

    train: TrainConfig
    distill: DistillSettings = Field(default_factory=DistillSettings)
    gradient_checkpointing: bool = False
    control: bool = Field(
        True,
        description="The same rounds and steps once more without the teacher: plain fine-tuning, which tells whether "
        "distillation helps.",
    )


class PruneConfig(RunConfig):
    """Makes a smaller model of a larger one: fewer layers, narrower MLPs, fewer heads, or zeros. Rows of data.train
    calibrate what goes, and train what is left where `recovery` says so; with data.test perplexity is measured before
    and after. A sequence classifier's rows are texts with a class (data.text, data.label), and accuracy is measured."""

    stand_ins: ClassVar[dict[str, Any]] = {"prune": {}}

    stage: Literal["prune"]
    data: DataConfig = Field(default_factory=DataConfig)
    prune: PruneSettings
    recovery: RecoverySettings | None = Field(None, description="What is cut is trained again, by distillation.")

    def as_distillation(self, model: str | None = None, has_teacher: bool = True) -> DistillConfig:
        """Returns the recovery as a run of its own: of the cut model at the path `model`, with what the run began with
        as its teacher. The control (`has_teacher` false) has the labels alone."""
        assert self.recovery is not None
        recovery = self.recovery
        alone = {"alpha": 0.0, "hidden": None, "cache": None}
        return DistillConfig(
            stage="distill",
            name=self.name,
            runs_dir=self.runs_dir,
            model=self.model.model_copy(update={"path": model} if model else {}),
            teacher=self.model,
            distill=recovery.distill if has_teacher else recovery.distill.model_copy(update=alone),
            data=self.data,
            train=recovery.train,
            gradient_checkpointing=recovery.gradient_checkpointing,
            parallel=self.parallel,
        )
