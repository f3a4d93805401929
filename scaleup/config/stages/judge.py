"""This module holds the config of preferences by a judge model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scaleup.config.adapters import Quantization
from scaleup.config.data import DataConfig
from scaleup.config.fields import Count
from scaleup.config.run import RunConfig
from scaleup.config.stages.base import QUANTIZATION, ConstitutionSection


class JudgementSettings(ConstitutionSection):
    as_chat: bool = Field(False, description="Ask as a message of the user, through the tokenizer's chat template.")
    labels: Literal["hard", "sampled"] = Field(
        "hard",
        description="hard: the likelier response is chosen. sampled: it is drawn by the judge's probability, so that "
        "the loss over many pairs is that of soft labels.",
    )
    drop_order_decided: bool = Field(
        False, description="Leave out pairs of which the judge prefers another response in the other order."
    )
    batch_size: Count = Field(16, description="Questions a process reads at a time.")


class JudgedData(DataConfig):
    wanted = frozenset({"preferences"})
    is_judged = True


class JudgementConfig(RunConfig):
    """Lets a model say which of two responses is the better: pairs for the stages reward and dpo."""

    stage: Literal["judge"]
    quantization: Quantization | None = Field(None, description=QUANTIZATION)
    data: JudgedData
    judge: JudgementSettings = Field(default_factory=JudgementSettings)
