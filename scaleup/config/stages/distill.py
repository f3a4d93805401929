"""This module holds the config of distillation: what a student learns from its teacher, and what the student is."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from scaleup.config.schema import Float, GenerationConfig, Int, ModelConfig, Section
from scaleup.config.stages.base import SupervisedConfig

Layer = Annotated[Int, Field(ge=0)]


class EveryLayer(Section):
    """Chooses the first layer and every so many after it."""

    every: Annotated[Int, Field(ge=2)]


def _list_or_every(value: Any) -> str:
    return "[every]" if isinstance(value, dict | EveryLayer) else "[list]"


StudentLayers = Annotated[
    Annotated[list[Layer], Field(min_length=1), Tag("[list]")] | Annotated[EveryLayer, Tag("[every]")],
    Discriminator(_list_or_every),
]


class HiddenSettings(Section):
    """The student's layers learn what the teacher's give (Romero et al. 2015), of an encoder-decoder model those of the
    decoder; both are taken before the final norm. The loss is summed over labelled positions, of a classifier's row it
    is the mean over its tokens; it is the mean over the pairs of layers."""

    weight: Annotated[Float, Field(gt=0)] = Field(1.0, description="Of this part in the loss.")
    loss: Literal["mse", "cosine"] = Field(
        "mse", description="The mean over the width of the squared difference, or 1 - cos."
    )
    layers: list[tuple[Layer, Layer]] | None = Field(
        None,
        min_length=1,
        description="Pairs [student, teacher], from 0; by default layer l of L_s goes with floor((l + 1) L_t / L_s) "
        "- 1 of L_t.",
    )
    projection: bool = Field(
        False,
        description="Put the student's states through a learned matrix for each pair; mse does wherever the widths "
        "differ.",
    )


class CacheSettings(Section):
    """What the teacher predicts at each labelled token is written to the run's folder before training, which then needs
    no teacher: its likeliest tokens, and all others as one (the tail), without which the divergence would be biased."""

    top_k: Annotated[Int, Field(ge=1)] = Field(
        64,
        description="Tokens kept for each position, 8 bytes each. A temperature above 1 leaves more in the tail: it "
        "needs more.",
    )


class DistillSettings(Section):
    """The loss a labelled token is alpha T^2 D(teacher, student) + (1 - alpha) cross-entropy (Hinton et al. 2015), and
    what hidden states add."""

    mode: Literal["offline", "sequence", "on_policy"] = Field(
        "offline",
        description="offline: the rows as they are. sequence: before training the teacher writes what follows each "
        "training prompt, and the student learns that instead of the row's own completion (Kim and Rush 2016). "
        "on_policy: at every step the student answers prompts, and learns from the teacher alone what its own answers "
        "should have been (Agarwal et al. 2024).",
    )
    generation: GenerationConfig = Field(
        default_factory=GenerationConfig,
        description="How the teacher writes for sequence, and the student for on_policy, which draws: there a "
        "temperature above 0 is needed.",
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    beta: Annotated[Float, Field(gt=0, lt=1)] | None = Field(
        None, description="Of jsd: the teacher's share of the mixture (Agarwal et al. 2024); by default 0.5."
    )
    temperature: Annotated[Float, Field(gt=0)] = 1.0
    alpha: Annotated[Float, Field(ge=0, le=1)] = Field(
        0.5, description="Share of the teacher; 0 is plain fine-tuning, the control."
    )
    hidden: HiddenSettings | None = None
    cache: CacheSettings | None = Field(
        None,
        description="Let the teacher go over the rows once, before training; by default it runs beside the student.",
    )
    student_layers: StudentLayers | None = Field(
        None, description="The student starts as these layers of model.path, from 0; of encoder and decoder alike."
    )

    @property
    def jsd_beta(self) -> float:
        """Returns the beta of the generalised divergence, whose ends, 0 and 1, are forward and reverse KL."""
        if self.divergence == "jsd":
            return 0.5 if self.beta is None else self.beta
        return float(self.divergence == "reverse_kl")


class DistillConfig(SupervisedConfig):
    """Trains a student, which learns from rows and from what its teacher makes of them; both are causal models,
    encoder-decoder models or classifiers, with one tokenizer. `model` is what the student starts as."""

    stand_ins: ClassVar[dict[str, Any]] = {"teacher": {"path": "scaleup/stand-in"}}

    stage: Literal["distill"]
    teacher: ModelConfig = Field(description="Frozen; it may be an adapter.")
    distill: DistillSettings = Field(default_factory=DistillSettings)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
