"""This module holds the sections of adapters and partial training: one a method, with PEFT's own key names and
defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag

from scaleup.config.fields import Count, Float, Int, PathText, Section, Text, Written, absolute_folder
from scaleup.errors import Problem

Patterns = Annotated[list[Text], Field(min_length=1)]


def _list_or_word(value: Any) -> str:
    return "[list]" if isinstance(value, list) else "[word]"


Targets = Annotated[
    Annotated[Patterns, Tag("[list]")] | Annotated[Literal["all-linear"], Tag("[word]")], Discriminator(_list_or_word)
]
Quantization = Literal["8bit", "4bit"]


class _Adapter(Section):
    path: PathText | None = Field(
        None, description="Go on from this adapter (a folder, or a finished run); its own settings hold."
    )

    def with_absolute_paths(self) -> Self:
        return self.model_copy(update={"path": absolute_folder(self.path)}) if self.path else self


class LoraAdapter(_Adapter):
    """Trains low-rank updates of matrices (Hu et al. 2021); `use_rslora` scales them by the rank's square root,
    `use_dora` trains magnitudes apart from directions."""

    type: Literal["lora"]
    r: Count = Field(8, description="The rank of an update.")
    lora_alpha: Annotated[Float, Field(gt=0)] = Field(8, description="Updates are scaled by lora_alpha / r.")
    lora_dropout: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    target_modules: Targets | None = Field(
        None,
        description="Names that modules end with, or all-linear; by default what PEFT takes for the architecture.",
    )
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: Patterns | None = Field(
        None, description="Modules trained whole and saved with the adapter, e.g. [lm_head]."
    )
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Biases of the base that are trained too.")


class IA3Adapter(_Adapter):
    """Trains a factor for each activation of some modules (Liu et al. 2022)."""

    type: Literal["ia3"]
    target_modules: Patterns | None = Field(
        None, description="Names that modules end with; by default those PEFT knows for the architecture."
    )
    feedforward_modules: list[Text] | None = Field(
        None, description="Those of target_modules whose input is scaled instead of their output."
    )
    modules_to_save: Patterns | None = Field(None, description="Modules trained whole and saved with the adapter.")


class AdaLoraAdapter(_Adapter):
    """Trains a LoRA whose ranks are allotted in training (Zhang et al. 2023): every matrix starts with init_r, and the
    least important are masked step by step until target_r are left on average. The schedule goes over the run's own
    number of steps."""

    type: Literal["adalora"]
    target_r: Count = Field(8, description="The rank of an update in the end, on average.")
    init_r: Count = Field(12, description="The rank of every update at first.")
    tinit: Annotated[Int, Field(ge=0)] = Field(0, description="Steps before ranks go down.")
    tfinal: Annotated[Int, Field(ge=0)] = Field(0, description="Steps after they have.")
    deltaT: Count = Field(1, description="Steps between two allotments.")
    beta1: Annotated[Float, Field(gt=0, lt=1)] = Field(0.85, description="Of the running average of importance.")
    beta2: Annotated[Float, Field(gt=0, lt=1)] = Field(0.85, description="Of that of its uncertainty.")
    orth_reg_weight: Annotated[Float, Field(ge=0)] = Field(
        0.5, description="Weight of the term that keeps singular vectors orthogonal, in the training loss alone."
    )
    lora_alpha: Annotated[Float, Field(gt=0)] = Field(8, description="Updates are scaled by lora_alpha / init_r.")
    lora_dropout: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    target_modules: Targets | None = Field(
        None,
        description="Names that modules end with, or all-linear; by default what PEFT takes for the architecture.",
    )

    def schedule_problems(self, num_steps: int | None) -> Iterator[Problem]:
        """Yields what the schedule of ranks needs of the number of the run's steps (None: unknown): one to weigh ranks
        by, and one to mask them. An adapter that is trained further keeps its ranks."""
        if self.path is not None:
            return
        if num_steps is None:
            what = (
                "is needed by adalora, whose ranks go down over the steps of the run: only reading the rows would tell"
            )
            yield Problem("train.max_steps", what, "give it in place of train.num_train_epochs")
        elif num_steps - self.tfinal < max(self.tinit, 1) + 1:
            what = f"{self.tinit} steps before and adapter.tfinal {self.tfinal} after leave none of {num_steps}"
            yield Problem("adapter.tinit", f"{what} to allot ranks in", "use less of them, or train for more steps")


class PromptTuningAdapter(_Adapter):
    """Trains soft prompts (Lester et al. 2021): vectors in front of the embedded tokens of every row."""

    type: Literal["prompt_tuning"]
    num_virtual_tokens: Count | None = Field(
        None, description="How many vectors; needed for a new one. They take positions of the model beside max_length."
    )
    prompt_tuning_init: Literal["RANDOM", "TEXT", "SAMPLE_VOCAB"] = Field(
        "RANDOM",
        description="What they start as: noise, the embeddings of prompt_tuning_init_text, or those of random tokens.",
    )
    prompt_tuning_init_text: Annotated[Text, Written(r"[\s\S]*\S[\s\S]*", "text with more than blanks")] | None = Field(
        None, description="Repeated or cut to as many tokens as there are vectors."
    )


class PrefixAdapter(_Adapter):
    """Trains a prefix (Li and Liang 2021): keys and values that each layer attends to beside the row's own. In an
    encoder-decoder model these are the decoder's layers."""

    type: Literal["prefix", "prefix_tuning"] = Field(description="Both are the same; the second is PEFT's name.")
    num_virtual_tokens: Count | None = Field(
        None, description="How many of them; needed for a new one. They take positions of the model beside max_length."
    )
    prefix_projection: bool = Field(
        False,
        description="Learn them through a network, which is not saved: the prefix cannot be trained further then.",
    )
    encoder_hidden_size: Count | None = Field(
        None, description="The width of that network; by default that of the keys."
    )


class SelectiveAdapter(Section):
    """Trains some of the model's own parameters; the others stay as they are. The result is a whole model."""

    type: Literal["selective"]
    parameters: Patterns = Field(
        description="Shell patterns over parameter names, e.g. ['*layers.1.*', '*norm*', '*.bias']."
    )


AnyAdapter = LoraAdapter | IA3Adapter | AdaLoraAdapter | PromptTuningAdapter | PrefixAdapter | SelectiveAdapter
AdapterConfig = Annotated[AnyAdapter, Field(discriminator="type")]
