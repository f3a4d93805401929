"""This module holds the config of learning from preferences without a reward model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from scaleup.config.data import DataConfig
from scaleup.config.fields import NotNegative, list_or_name
from scaleup.config.schema import Float, GenerationConfig, Section
from scaleup.config.stages.base import SupervisedConfig

PairLoss = Literal["dpo", "ipo", "hinge", "robust", "sppo", "orpo", "simpo", "cpo", "sft", "kto"]


PairLosses = Annotated[
    Annotated[PairLoss, Tag("[name]")] | Annotated[list[PairLoss], Field(min_length=1), Tag("[list]")],
    Discriminator(list_or_name),
]
AGAINST_REFERENCE = frozenset({"dpo", "ipo", "hinge", "robust", "sppo", "kto"})


class DPOSettings(Section):
    """The loss of a pair is that of Rafailov et al. 2023 (dpo), Azar et al. 2023 (ipo), Zhao et al. 2023 (hinge),
    Chowdhury et al. 2024 (robust), Wu et al. 2024 (sppo), Hong et al. 2024 (orpo), Meng et al. 2024 (simpo), Xu et al.
    2024 (cpo), or cross-entropy of the chosen response (sft); or a weighted sum of several. That of a single response,
    desirable or not, is that of Ethayarajh et al. 2024 (kto)."""

    loss: PairLosses = Field("dpo", description="One, or several.")
    loss_weights: list[Float] | None = Field(None, description="One for each of several losses; by default 1.")
    beta: Annotated[Float, Field(gt=0)] = Field(
        0.1, description="How near to the reference the model stays; of ipo it is tau, of orpo lambda."
    )
    label_smoothing: Annotated[Float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="Of robust, simpo and cpo: the probability that a preference is the wrong way round."
    )
    simpo_gamma: NotNegative = Field(0.5, description="Of simpo: by how much the chosen response is to be ahead.")
    cpo_alpha: NotNegative = Field(1.0, description="Of simpo and cpo: the weight of cross-entropy beside them.")
    desirable_weight: Annotated[Float, Field(gt=0)] = Field(1.0, description="Of kto: the weight of such rows.")
    undesirable_weight: Annotated[Float, Field(gt=0)] = Field(1.0, description="Of kto: the weight of the others.")
    reference: Literal["auto", "adapter_off", "copy", "cached"] = Field(
        "auto",
        description="adapter_off: the model without its adapter, or with the adapter as it was before training. copy: "
        "a frozen copy of the model. cached: its log-probabilities, computed once before training. auto: adapter_off "
        "where there is an adapter of PEFT, else copy.",
    )
    reference_free: bool = Field(False, description="Take every response to be equally likely to the reference.")

    @property
    def needs_reference(self) -> bool:
        """Returns whether some loss compares the model with its reference."""
        return not self.reference_free and any(loss in AGAINST_REFERENCE for loss in self.losses)

    @property
    def caches_reference(self) -> bool:
        return self.reference == "cached"

    @property
    def is_unpaired(self) -> bool:
        """Returns whether rows are single responses, desirable or not, in place of pairs."""
        return "kto" in self.losses

    @property
    def losses(self) -> list[str]:
        return [self.loss] if isinstance(self.loss, str) else list(self.loss)

    @property
    def weights(self) -> list[float]:
        return [1.0] * len(self.losses) if self.loss_weights is None else self.loss_weights


class ResponseData(DataConfig):
    wanted = frozenset({"preferences", "unpaired preferences"})


class DPOConfig(SupervisedConfig):
    """Trains a causal or an encoder-decoder model on pairs of a chosen and a rejected response, or on responses that
    are desirable or not: all of it, or an adapter."""

    stage: Literal["dpo"]
    data: ResponseData
    dpo: DPOSettings = Field(default_factory=DPOSettings)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
