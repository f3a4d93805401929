"""The deployment card: what variants of a model cost and what they can do, beside the model they come from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scaleup.config.schema import Count, Int, Name, PathText, Section

Variants = Annotated[dict[Name, PathText], Field(min_length=1)]
"""A name for the card -> a Hugging Face folder, or a finished run that made one."""


class CardSettings(Section):
    """How much is measured. Quality is that of data.test's first rows; each model's speed and memory are measured in a
    process of its own, one sequence at a time."""

    max_rows: Count = Field(200, description="Rows of data.test.")
    bootstrap_samples: Annotated[Int, Field(ge=100)] = Field(
        1000, description="Drawings of rows with replacement that the intervals come from (Efron 1979)."
    )
    prompt_tokens: Annotated[Int, Field(ge=2)] = Field(128, description="Of the prompt that speed is measured on.")
    new_tokens: Annotated[Int, Field(ge=2)] = Field(32, description="Tokens generated after it.")
    repeats: Count = Field(5, description="Times that both are measured; the card has the medians.")
    rounds: Count = Field(
        1,
        description="Times that this is done for all models in turn; the card has each one's best, for whatever else "
        "a machine does makes it slower.",
    )
    compile: bool = Field(False, description="Measure torch.compile'd inference too: minutes a model on a CPU.")
