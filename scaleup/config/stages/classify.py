"""This module holds the config of sequence classifiers that are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from scaleup.config.data import ClassData, ClassProblem
from scaleup.config.fields import Text, list_or_name
from scaleup.config.schema import Float, Section
from scaleup.config.stages.base import SupervisedConfig

Weight = Annotated[Float, Field(gt=0)]
ClassWeights = Annotated[
    Annotated[list[Weight], Field(min_length=1), Tag("[list]")] | Annotated[Literal["balanced"], Tag("[name]")],
    Discriminator(list_or_name),
]


class ClassifySettings(Section):
    """The loss of a text is cross-entropy over the labels (single_label), the mean over the labels of binary
    cross-entropy (multi_label), or the mean over the outputs of the squared error (regression), as Transformers has
    them."""

    problem: Literal["auto", ClassProblem] = Field(
        "auto",
        description="auto: what the model's own head was trained for; of a new head what the training rows say: lists "
        "are multi_label, numbers of which some are not whole regression, anything else single_label.",
    )
    labels: list[Text] | None = Field(
        None,
        min_length=1,
        description="The labels of a new head, in the order of its logits; by default those of the training rows, "
        "sorted. Of regression the names of its outputs.",
    )
    class_weights: ClassWeights | None = Field(
        None,
        description="A number for each label, in order. Of single_label the loss is sum(w l) / sum(w) over the rows of "
        "a step; of multi_label they weigh a label where it is there. balanced: rows / (labels x the label's rows), of "
        "multi_label the rows without the label / those with it, counted over the training rows.",
    )


class ClassifyConfig(SupervisedConfig):
    """Trains a sequence classifier: an encoder, a decoder or an encoder-decoder with a head over labels, which is new,
    or that of a classifier, which is trained further."""

    stage: Literal["classify"]
    data: ClassData
    classify: ClassifySettings = Field(default_factory=ClassifySettings)
