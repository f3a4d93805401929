"""This module holds the data section of a config: which rows are read, and how a row becomes an example."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field

from scaleup.config.fields import Count, Float, Int, Name, PathText, Section, Text, absolute, is_template_file


def _as_sources(value: Any) -> Any:
    """Turns `train: rows.jsonl`, `train: [a.jsonl, {path: b.jsonl}]` and `{path: a.jsonl}` into lists of sources."""
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


class RowFormat(Section):
    """Says how a row becomes an example. At most one of: `prompt` + `completion`, `template`, `messages`, `text`; for
    preferences `chosen` + `rejected`, or `completions` + `ranks` or `ratings`, each after a `prompt` or without one;
    for KTO `prompt` + `completion` + `label`; for classifiers `text` + `label`. Where none is stated, the columns of a
    local file may tell: see docs/data.md."""

    prompt: Text | None = Field(None, description="A template over columns, e.g. 'Review: {text}\\nSentiment:'.")
    completion: Text | None = Field(None, description="A template over columns; the loss is on this part.")
    template: Text | None = Field(None, description="A named instruction template: see docs/data.md.")
    columns: dict[str, str] = Field(default_factory=dict, description="A template's field -> the data's column.")
    messages: Text | None = Field(None, description="The column with chat messages [{role, content}, ...].")
    tools: Text | None = Field(
        None,
        description="The column with the tools that a chat's template shows; by default `tools` where rows have one.",
    )
    text: Text | None = Field(None, description="A template over columns for plain language modelling, e.g. '{text}'.")
    label: Text | None = Field(
        None,
        description="The column with a text's class: one of the classifier's labels, or its number; or a list of "
        "labels, or a number: see docs/stages/classify.md. Beside prompt and completion that of true or false, whether "
        "the completion is desirable (KTO).",
    )
    chosen: Text | None = Field(None, description="A template over columns: the preferred of two responses.")
    rejected: Text | None = Field(None, description="A template over columns: the other response.")
    completions: Text | None = Field(None, description="The column with a list of responses, of which pairs are made.")
    ranks: Text | None = Field(None, description="The column with their ranks, the best the lowest.")
    ratings: Text | None = Field(None, description="Instead: the column with their ratings, the best the highest.")
    margin: Text | None = Field(
        None,
        description="The column with the margin by which a pair's chosen response should win (Touvron et al. 2023); "
        "of rated completions the name of `ratings` again, for the difference.",
    )


class SourceConfig(RowFormat):
    """Names rows: a .jsonl, .json, .csv or .parquet file, a folder of them, or a `datasets` name; its format overrides
    `data`'s."""

    path: Text
    weight: Annotated[Float, Field(gt=0)] = Field(
        1.0, description="This source's share of the rows drawn, relative to the others'."
    )
    name: Text | None = Field(None, description="The configuration of a `datasets` name.")
    max_rows: Count | None = Field(None, description="Only the first so many rows.")
    split: Text | None = Field(
        None,
        description="The split of a `datasets` name, e.g. train or train[:90%]; or the one of a folder that "
        "`DatasetDict.save_to_disk` wrote.",
    )


class RetainedSource(SourceConfig):
    """Names rows of an old task. Rows of one task may come from several sources."""

    task: Name = Field(description="What the metrics call it: eval/retain/TASK/loss.")


Sources = Annotated[list[SourceConfig], BeforeValidator(_as_sources), Field(min_length=1)]
RetainedSources = Annotated[list[RetainedSource], BeforeValidator(_as_sources), Field(min_length=1)]


RowKind = Literal[
    "conversations",
    "preferences",
    "unpaired preferences",
    "prompts and completions",
    "instructions with answers",
    "texts with a class",
    "plain text",
]


class FewShotConfig(Section):
    """Puts rows of data.train before each prompt as examples: in a conversation as earlier turns, before a text as
    prompts with their completions. A row is never an example for itself."""

    num_examples: Annotated[Int, Field(ge=0)] | None = Field(
        None, description="Examples before a prompt, which are drawn anew for each; 1 by default."
    )
    indices: list[Annotated[Int, Field(ge=0)]] | None = Field(
        None, min_length=1, description="Instead: the numbers of rows of data.train, from 0, before every prompt."
    )
    seed: Annotated[Int, Field(ge=0)] = Field(0, description="Of what is drawn.")
    balanced: bool = Field(
        False, description="Draw as many examples of each completion: for completions that are labels."
    )
    separator: str = Field("\n\n", description="Stands behind each example that is a text.")

    @property
    def count(self) -> int:
        """Returns how many examples stand before a prompt."""
        if self.indices is not None:
            return len(self.indices)
        return 1 if self.num_examples is None else self.num_examples


class DataConfig(RowFormat):
    wanted: ClassVar[frozenset[RowKind]] = frozenset()
    """Holds the kinds of rows that the stage learns from, of which columns that fit several kinds tell one; empty where
    the stage alone does not say."""

    is_judged: ClassVar[bool] = False
    """Tells whether rows may leave open which of several completions is the better."""

    root: PathText = Field(".", description="The folder that relative paths start from.")
    train: Sources | None = None
    validation: Sources | None = None
    test: Sources | None = None
    supervised: Sources | None = Field(
        None, description="Of `stage: rl`: rows with completions, which are learned beside the rollouts (PPO-ptx)."
    )
    few_shot: FewShotConfig | None = Field(
        None, description="Of `evaluate` and `generate`: examples of data.train before each prompt."
    )
    retain: RetainedSources | None = Field(
        None,
        description="Of `stage: sft`: rows of old tasks, whose loss is measured before training, with each evaluation "
        "and after: how much is forgotten.",
    )
    regularization: Sources | None = Field(
        None, description="Of `stage: sft`: rows of old tasks by which `regularization` keeps the model what it was."
    )
    validation_fraction: Annotated[Float, Field(gt=0, lt=1)] | None = Field(
        None, description="Hold out this share of the training rows, drawn by the seed, instead of `validation`."
    )
    max_length: Annotated[Int, Field(ge=2)] = Field(
        512, description="Tokens a row; of the prompt and of the completion each for seq2seq models."
    )
    too_long: Literal["truncate", "drop", "error"] = Field(
        "truncate", description="Rows over max_length: cut at the end, left out and counted, or refused by name."
    )
    completion_only_loss: bool = True
    train_on: Literal["assistant", "last", "all"] = Field(
        "assistant",
        description="What is learned of a conversation: the assistant's answers, the last of them, or everything.",
    )
    split_turns: bool = Field(
        False, description="Make a row of each answer of a conversation, after what was before it."
    )
    chat_template: PathText | None = Field(
        None,
        description="A file, one of TRL's templates (`trl:qwen3_training`) or one of the tokenizer's own by its name: "
        "in place of the tokenizer's template, and saved with the model.",
    )
    shuffle: bool = True
    packing: bool = Field(
        False,
        description="Training rows laid one after another into sequences of up to max_length tokens, blind to each "
        "other: see docs/data.md.",
    )
    streaming: bool = Field(False, description="Read rows as they are needed: for data larger than memory.")
    shuffle_buffer: Count = Field(10_000, description="Rows shuffled together when streaming.")

    def with_absolute_paths(self) -> Self:
        template = self.chat_template
        return self.model_copy(
            update={
                "root": absolute(self.root),
                "chat_template": absolute(template) if template and is_template_file(template) else template,
            }
        )


class PreferenceData(DataConfig):
    wanted = frozenset({"preferences"})


class ClassData(DataConfig):
    wanted = frozenset({"texts with a class"})


ClassProblem = Literal["single_label", "multi_label", "regression"]
"""Names what a sequence classifier's logits are, as Transformers' `problem_type` does: the classes of which a text has
one; labels of which it may have any; numbers."""


class LanguageData(DataConfig):
    wanted = frozenset({"conversations", "prompts and completions", "instructions with answers", "plain text"})
