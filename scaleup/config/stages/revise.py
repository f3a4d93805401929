"""This module holds the config of revisions by principles."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scaleup.config.adapters import Quantization
from scaleup.config.data import DataConfig
from scaleup.config.fields import Count
from scaleup.config.run import RunConfig
from scaleup.config.schema import GenerationConfig
from scaleup.config.stages.base import QUANTIZATION, ConstitutionSection


class ReviseSettings(ConstitutionSection):
    responses: Literal["generated", "data"] = Field(
        "generated", description="What is revised: what the model itself answers first, or the rows' completions."
    )
    num_revisions: Count = Field(1, description="Critiques and revisions, each of the answer before it.")
    batch_size: Count = Field(16, description="Prompts a process answers at a time.")


class ReviseConfig(RunConfig):
    """Lets a model criticise answers by principles and write them again: rows for `stage: sft`."""

    stage: Literal["revise"]
    quantization: Quantization | None = Field(None, description=QUANTIZATION)
    data: DataConfig
    revise: ReviseSettings = Field(default_factory=ReviseSettings)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
