"""This module holds the sources of scores for texts: a reward model, a service or a function."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from scaleup.config.adapters import Quantization
from scaleup.config.fields import Float, Name, PathText, Positive, absolute
from scaleup.config.schema import (
    Count,
    Int,
    MixedPrecision,
    ModelConfig,
    ParallelConfig,
    Port,
    ScorerConfig,
    Section,
    Text,
)


class JudgeConfig(Section):
    """Asks a language model behind an OpenAI-compatible endpoint for a score."""

    model: Text = Field(description="What the endpoint calls the model.")
    template: Text = Field(
        "Rate the response to the prompt from 0 (useless) to 10 (excellent).\n\nPrompt:\n{prompt}\n\nResponse:\n"
        "{response}\n\nEnd your answer with `Score: N`.",
        description="What the judge reads, over {prompt} and {response}; of a conversation {prompt} is its turns.",
    )
    pattern: Text = Field(
        r"Score:\s*(-?\d+(?:\.\d+)?)",
        description="Of Python's re: the last match in the judge's answer is the score, or its first group if it has "
        "one.",
    )
    max_tokens: Count = Field(512, description="Of an answer, at most.")
    max_concurrency: Count = Field(8, description="Requests that a process of the policy has on their way.")
    api_key_env: Text | None = Field(
        None, description="Names the environment variable that holds the key; the key itself is in no file of a run."
    )
    api_key_file: PathText | None = Field(None, description="Names the file that holds the key.")

    def with_absolute_paths(self) -> Self:
        return self.model_copy(update={"api_key_file": absolute(self.api_key_file)}) if self.api_key_file else self


class RewardSource(Section):
    """Says where scores come from: a reward model in a process group of its own, one in every policy process, a
    service, or a Python function. All give the same scores for the same texts."""

    placement: Literal["group", "colocated", "http", "function"] = "group"
    model: ModelConfig | None = Field(
        None, description="For group and colocated: a finished reward run, or a sequence classifier."
    )
    label: Text | None = Field(None, description="Of a classifier with several labels: the one that is rewarded.")
    score: Literal["logit", "probability"] = "logit"
    template: Text | None = Field(
        None,
        description="What the reward model reads, over {prompt} and {response}; by default what it was trained on, or "
        "the one after the other.",
    )
    max_length: Annotated[Int, Field(ge=2)] | None = Field(
        None, description="Tokens that the reward model reads, the last ones; by default what it was trained on."
    )
    normalize: bool = Field(True, description="By the mean and spread that a reward run saved with its model.")
    batch_size: Count = Field(16, description="Texts a forward pass.")
    quantization: Quantization | None = None
    mixed_precision: MixedPrecision = "no"
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="Of the reward group.")
    url: Text | None = Field(None, description="For http: where prompts and completions are posted as JSON.")
    format: Literal["scores", "openai"] = Field(
        "scores", description="For http: what is posted there; openai: a chat completion's request for each response."
    )
    judge: JudgeConfig | None = Field(None, description="For format openai.")
    function: Text | None = Field(
        None,
        description="For function: FILE.py:NAME or MODULE:NAME, called as f(prompts, completions, completion_ids, "
        "**columns), in a process of its own; or builtin:NAME (docs/stages/rewards.md).",
    )
    arguments: dict[str, Any] = Field(default={}, description="What the function gets beside the rows, by name.")
    retries: Annotated[Int, Field(ge=0)] = Field(
        0, description="How often a function's call is made again that raised, or took longer than timeout_seconds."
    )
    own_nodes: bool = Field(
        False,
        description="The reward group is on a node after the policy's, which all that say so share; else it is on the "
        "first one.",
    )
    timeout_seconds: Positive = Field(
        120.0, description="A request, or a function's call, that takes longer counts as lost."
    )
    reconnect_seconds: Positive = Field(
        600.0, description="How long the policy waits for a reward group, or service, that is gone."
    )
    bridge_port: Port | None = Field(
        None, description="Where the policy listens for the reward group; by default a free port at each start."
    )
    max_restarts: Annotated[Int, Field(ge=0)] = Field(
        3, description="How often a reward group that died is started again while the policy waits."
    )

    @property
    def scorer(self) -> ScorerConfig:
        """Returns how the reward model scores. There must be one: placement group or colocated."""
        assert self.model is not None
        return ScorerConfig(
            model=self.model,
            label=self.label,
            score=self.score,
            template=self.template,
            max_length=self.max_length,
            normalize=self.normalize,
            batch_size=self.batch_size,
            quantization=self.quantization,
            mixed_precision=self.mixed_precision,
        )

    def with_absolute_paths(self) -> Self:
        section = super().with_absolute_paths()
        file, _, name = (self.function or "").rpartition(":")
        if not file or not Path(file).is_file():
            return section
        return section.model_copy(update={"function": f"{Path(file).absolute()}:{name}"})


class NamedReward(RewardSource):
    """Is one of several sources, whose scores are combined by their weights."""

    name: Name = Field(description="Stands in the metrics: rewards/NAME/mean.")
    weight: Float = 1.0


@dataclass(frozen=True)
class WeightedReward:
    """Tells where a config has a source of scores, and what becomes of them."""

    key: str
    """Is the config key of its section: `reward`, or `rewards.0`."""
    name: str
    weight: float
    source: RewardSource

    @property
    def group(self) -> str:
        """Returns the name of its process group, where it has one."""
        return "reward" if self.key == "reward" else f"reward-{self.name}"
