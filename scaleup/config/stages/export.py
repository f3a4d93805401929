"""This module holds the config of an export: a model in a format that others load."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scaleup.config.adapters import Quantization
from scaleup.config.data import DataConfig
from scaleup.config.fields import MAX_SHARD_SIZE, Count, Float, Int, PathText, Section, ShardSize
from scaleup.config.run import RunConfig


class ExportSettings(Section):
    """Says what is written, and how it is checked: safetensors by logits in float32, on drawn token ids and on rows of
    data.test; gguf by greedy text through llama.cpp; onnx by logits through ONNX Runtime."""

    format: Literal["safetensors", "gguf", "onnx"] = Field(
        "safetensors",
        description="gguf: causal models, for llama.cpp; onnx: classifiers, reward models and encoders, in float32.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of safetensors that are written; auto: that of the files they come from."
    )
    max_shard_size: ShardSize = MAX_SHARD_SIZE
    gguf_type: Literal["f16", "q8_0"] = Field("f16", description="Of a gguf's matrices: 16 bits, or blocks of 8.")
    converter: PathText | None = Field(
        None, description="llama.cpp's converter, for gguf; by default where `make converter` puts it, in the cache."
    )
    max_new_tokens: Count = Field(16, description="Tokens that a gguf answers each prompt with when it is checked.")
    tolerance: Annotated[Float, Field(gt=0)] = Field(
        5e-4,
        description="How far merging, or writing and reading again, may move a logit; a share of the largest logit.",
    )
    num_rows: Annotated[Int, Field(ge=0)] = Field(4, description="Rows of data.test to check on.")
    trained_in: Quantization | None = Field(
        None,
        description="How the base was held when the adapter was trained. It is merged into unquantized weights all the "
        "same; the result says how far that is from what was trained.",
    )


class ExportConfig(RunConfig):
    """Exports a model for others, as it is or with its adapter merged into the unquantized base: as plain Transformers,
    llama.cpp or ONNX Runtime loads it."""

    stage: Literal["export"]
    data: DataConfig = Field(default_factory=DataConfig)
    export: ExportSettings = Field(default_factory=ExportSettings)
