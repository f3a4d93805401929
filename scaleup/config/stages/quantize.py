"""This module holds the config of quantization."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from scaleup.config.data import DataConfig
from scaleup.config.fields import MAX_SHARD_SIZE, Count, Int, Section, ShardSize, Text
from scaleup.config.run import RunConfig


class QuantizeSettings(Section):
    """Says how weights are stored. No method needs calibration."""

    method: Literal["int8_weight_only", "int8_dynamic", "int4_weight_only", "bfloat16", "float16"] = Field(
        description="int8 and int4 through torchao; int8_dynamic computes in 8 bits too, with activations rounded as "
        "they come; int4_weight_only needs a GPU."
    )
    group_size: Count | None = Field(
        None,
        description="Weights that share a scale: by default a row for int8_weight_only, 128 for int4_weight_only.",
    )
    skip: list[Text] | None = Field(
        None,
        description="Shell patterns of modules to leave, e.g. '*.down_proj'; by default the head. A head that shares "
        "the embeddings' weights is left in any case.",
    )
    num_rows: Annotated[Int, Field(ge=0)] = Field(4, description="Rows of data.test to compare logits on.")
    batch_size: Count = Field(8, description="Rows at a time when perplexity is measured, on all of data.test.")
    max_shard_size: ShardSize = MAX_SHARD_SIZE

    @property
    def is_low_precision(self) -> bool:
        """Returns whether all weights are rounded to 16 bits, and no matrix is stored in integers."""
        return self.method in ("bfloat16", "float16")


class QuantizeConfig(RunConfig):
    """Makes a model whose weights take fewer bits, as a folder that plain Transformers loads."""

    stand_ins: ClassVar[dict[str, Any]] = {"quantize": {"method": "bfloat16"}, "method": "bfloat16"}

    stage: Literal["quantize"]
    data: DataConfig = Field(default_factory=DataConfig)
    quantize: QuantizeSettings
