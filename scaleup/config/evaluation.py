"""This module holds what an evaluation measures, and by which models."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from scaleup.config.fields import Count, Int, PathText, Section, Text, absolute, is_place
from scaleup.config.metrics import BY_LIKELIHOOD, EVALUATE, NAMES, OF_ANSWERS, Metric, absolute_metric
from scaleup.config.schema import ModelConfig, ScorerConfig


class PairwiseJudge(Section):
    """Asks a language model which of two responses is better: by the probabilities of two options, in both orders."""

    model: ModelConfig
    template: Text = Field(
        "Which response to the prompt is better?\n\nPrompt:\n{prompt}\n\nResponse A:\n{first}\n\nResponse B:\n"
        "{second}\n\nThe better one is Response",
        description="What the judge reads, over {prompt}, {first} and {second}; of a conversation {prompt} is its "
        "turns. A judge with a chat template reads it as a message.",
    )
    options: Annotated[list[Text], Field(min_length=2, max_length=2)] = Field(
        default=["A", "B"], description="What it answers for the first and for the second."
    )
    max_length: Annotated[Int, Field(ge=2)] | None = Field(
        None,
        description="Tokens that the judge reads, by default as many as it has positions for, or 1024 if that is less; "
        "pairs that are longer are left out and counted.",
    )


class EvaluationConfig(Section):
    metrics: list[Metric] = Field(
        default=["perplexity"],
        description="Of rows; none ([]) where `tasks` alone are measured. "
        f"{', '.join(NAMES)}; {EVALUATE}NAME or PATH of Hugging Face's library evaluate; or FILE.py:FUNCTION. "
        f"{', '.join(OF_ANSWERS)} need prompts alone, the others completions too.",
    )
    tasks: list[PathText] = Field(
        default=[],
        description="Benchmarks of lm-evaluation-harness (extra `eval`): tasks, groups and tags by its names; "
        "FILE.yaml; or a folder of those, with a '/' in it (./tasks).",
    )
    num_fewshot: Annotated[Int, Field(ge=0)] | None = Field(
        None, description="Of `tasks`: examples before each document, in place of the task's own number."
    )
    apply_chat_template: bool = Field(
        False, description="Of `tasks`: ask by the tokenizer's chat template, examples as earlier turns."
    )
    split: Literal["validation", "test"] = "test"
    labels: list[Text] | None = Field(
        None,
        description="For accuracy and f1: the first of these named in the answer is the prediction; for "
        "likelihood_accuracy and likelihood_f1 it is the likeliest.",
    )
    toxicity_model: ModelConfig | None = Field(
        None, description="For toxicity: a sequence classifier, which reads each answer alone."
    )
    toxic_label: Text | None = Field(
        None, description="For toxicity: the classifier's label whose probability is measured, e.g. hate."
    )
    reward_model: ModelConfig | None = Field(
        None, description="For reward: a finished reward run, or a classifier, which reads prompt and answer."
    )
    reward_label: Text | None = Field(None, description="For reward: of a classifier with several labels, the one.")
    reference: ModelConfig | None = Field(
        None, description="For kl: the model from which the divergence is measured; by default the baseline."
    )
    judge: PairwiseJudge | None = Field(
        None, description="For judge: the model that says which answer is better, each column's or the first's."
    )
    bootstrap_samples: Annotated[Int, Field(ge=0)] = Field(
        1000, description="Samples of the rows from which every figure's 95 % interval is taken; 0: no intervals."
    )
    trust_remote_code: bool = Field(
        False,
        description=f"Run code of a hub ({EVALUATE}NAME, where NAME is no file or folder here), code that the files of "
        "`tasks` name, and answers of models, where a task does so.",
    )
    max_samples: Count | None = Field(None, description="Rows, and documents of each of `tasks`, at most.")
    batch_size: Count = 16

    @property
    def toxicity_scorer(self) -> ScorerConfig | None:
        """Returns how each answer, which is read alone, is scored: by the probability of the toxic label. None if
        toxicity is not measured, or no classifier is named."""
        if "toxicity" not in self.metrics or self.toxicity_model is None:
            return None
        return ScorerConfig(
            model=self.toxicity_model,
            label=self.toxic_label,
            score="probability",
            template="{response}",
            normalize=False,
            batch_size=self.batch_size,
        )

    @property
    def reward_scorer(self) -> ScorerConfig | None:
        """Returns how a reward model scores answers: as its run did. None if no reward is measured, or no model is
        named."""
        if "reward" not in self.metrics or self.reward_model is None:
            return None
        return ScorerConfig(model=self.reward_model, label=self.reward_label, batch_size=self.batch_size)

    @property
    def needs_completions(self) -> bool:
        """Returns whether a row must say what the answer should be."""
        return not set(self.metrics) <= set(OF_ANSWERS)

    @property
    def needs_answers(self) -> bool:
        """Returns whether the model must write anything."""
        return not set(self.metrics) <= set(BY_LIKELIHOOD)

    def with_absolute_paths(self) -> Self:
        made = {
            "metrics": [absolute_metric(metric) for metric in self.metrics],
            "tasks": [absolute(task) if is_place(task) else task for task in self.tasks],
        }
        changed = {key: value for key, value in made.items() if value != getattr(self, key)}
        section = super().with_absolute_paths()
        return section.model_copy(update=changed) if changed else section
