"""This module holds the config of supervised fine-tuning."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from scaleup.config.data import LanguageData
from scaleup.config.fields import Positive, Section
from scaleup.config.schema import GenerationConfig
from scaleup.config.stages.base import SupervisedConfig


class Regularization(Section):
    """A term beside the loss of the new rows that keeps the model near what it was, against forgetting."""

    type: Literal["l2sp", "ewc", "kl"] = Field(
        description="l2sp: weight / 2 x the squared distance of the trained weights from where they began (Li et al. "
        "2018). ewc: each weight's part of it times the Fisher information that rows of data.regularization have of it "
        "(Kirkpatrick et al. 2017). kl: weight x KL(model as it was || model) a labelled token of these rows, as many "
        "of them beside each step as it has new ones."
    )
    weight: Positive = Field(description="Of the term. What is right differs by orders of magnitude with the type.")

    @property
    def reads_rows(self) -> bool:
        """Returns whether the term is of old rows, not of the weights alone."""
        return self.type != "l2sp"

    @property
    def copies(self) -> int:
        """Returns how many numbers are kept beside each trained weight: where it began, and its Fisher information."""
        return {"l2sp": 1, "ewc": 2, "kl": 0}[self.type]


class SFTConfig(SupervisedConfig):
    """Fine-tunes a causal or an encoder-decoder model: all of it, or an adapter."""

    stand_ins: ClassVar[dict[str, Any]] = {"weight": 1.0}

    stage: Literal["sft"]
    data: LanguageData
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    regularization: Regularization | None = None
    torch_compile: bool = Field(
        False,
        description="Compile the model's layers (torch.compile), for all lengths at once; under single and ddp. The "
        "same run up to rounding; its first steps take minutes.",
    )
    use_liger_kernel: bool = Field(
        False,
        description="Norms, rotations and MLPs by Liger's kernels, on GPUs (extra liger). Its loss is not used: the "
        "head computes that in chunks anyway.",
    )

    @property
    def copies_a_weight(self) -> int:
        return self.regularization.copies if self.regularization else 0

    @property
    def passes_a_micro_batch(self) -> int:
        return 2 if self.compares_with_base else 1

    @property
    def compares_with_base(self) -> bool:
        """Returns whether a frozen copy of the model stands beside it."""
        return self.regularization is not None and self.regularization.type == "kl"
