"""This module holds one pydantic model a section. Names follow Hugging Face where it has one. Nothing here knows of
other sections' files or machines: cross-section rules live in `scaleup.plan.rules`, so that every mistake is reported
at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from scaleup.config.fields import (
    MAX_SHARD_SIZE,
    Count,
    Float,
    Int,
    PathText,
    Port,
    Section,
    ShardSize,
    Text,
    absolute_folder,
)
from scaleup.config.metrics import EVALUATE, FIGURES, Metric, absolute_metric


def _no_is_no(value: Any) -> Any:
    """Accepts false as `no`: YAML 1.1 reads a bare `no` as false."""
    return "no" if value is False else value


Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


class ModelConfig(Section):
    """Names a model: a Hugging Face folder or hub name, a finished run folder, `package:NAME` or `builtin:NAME`."""

    path: PathText
    task: Literal["auto", "causal_lm", "seq2seq_lm", "sequence_classification"] = Field(
        "auto",
        description="auto: what the model's files say; for the stages reward and classify a sequence classifier.",
    )
    tokenizer: PathText | None = Field(
        None,
        description="A folder that `tokenizer.save_pretrained` wrote, or whatever names a model, of which it is the "
        "tokenizer; by default the model's own.",
    )
    revision: Text | None = Field(None, description="A branch, tag or commit of a hub name.")
    trust_remote_code: bool = False
    attn_implementation: Attention | None = Field(
        None,
        description="Transformers' name of an attention; by default its choice: sdpa, or eager where the family has no "
        "other. eager keeps the scores of every layer; flash_attention_* and flex_attention need a GPU.",
    )
    new_tokens: list[str] = Field(
        default_factory=list,
        description="Tokens that the tokenizer gets beside its own, with a row each of the embeddings and of the head, "
        "which starts as the mean of the others. Only of the model that is trained.",
    )

    def with_absolute_paths(self) -> Self:
        named = {"path": self.path, "tokenizer": self.tokenizer}
        return self.model_copy(update={key: absolute_folder(value) for key, value in named.items() if value})


SCHEDULES = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]


class OptimizationConfig(Section):
    """Holds what every training stage has: micro-batches, the optimizer and its schedule, when to log and to save."""

    per_device_train_batch_size: Count | None = Field(
        None, description="Rows a micro-batch, or sequences with packing; 8 unless tokens_per_device is given."
    )
    per_device_eval_batch_size: Count = 8
    learning_rate: Annotated[Float, Field(gt=0)] = 5e-5
    lr_scheduler_type: SCHEDULES = "linear"
    warmup_steps: Annotated[Int, Field(ge=0)] | None = None
    warmup_ratio: Annotated[Float, Field(ge=0, lt=1)] | None = None
    optimizer: Literal["adamw", "adamw_8bit", "sgd"] = Field(
        "adamw",
        description="adamw_8bit: bitsandbytes' AdamW, whose moments have 8 bits (Dettmers et al. 2022); under single "
        "and ddp.",
    )
    weight_decay: Annotated[Float, Field(ge=0)] = 0.0
    momentum: Annotated[Float, Field(ge=0, lt=1)] = Field(0.0, description="Of sgd.")
    adam_beta1: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[Float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[Float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[Float, Field(ge=0)] = Field(1.0, description="0 means no clipping.")
    eval_steps: Count | None = Field(None, description="Evaluate every so many steps; null means only at the end.")
    save_steps: Count | None = Field(None, description="Checkpoint every so many steps; null means only at the end.")
    stop_at_step: Count | None = Field(
        None, description="Save and stop after this step, as a signal would; --resume with a later one goes on."
    )
    save_minutes: Annotated[Float, Field(gt=0)] | None = Field(
        None, description="Checkpoint every so many minutes, beside save_steps: after the step that is under way."
    )
    async_save: bool = Field(
        True,
        description="Go on training while a checkpoint is written, from a copy in main memory, where that has room.",
    )
    save_total_limit: Count = Field(2, description="Checkpoints kept, the best one beside them.")
    max_shard_size: ShardSize = MAX_SHARD_SIZE
    logging_steps: Count = 1
    seed: Annotated[Int, Field(ge=0)] = 0


class EvaluatedConfig(OptimizationConfig):
    """Holds what every stage has whose best weights, and early end, follow from its evaluations."""

    early_stopping_patience: Count | None = Field(
        None, description="Stop after so many evaluations without a better metric_for_best_model."
    )
    early_stopping_threshold: Annotated[Float, Field(ge=0)] = 0.0
    load_best_model_at_end: bool = False
    eval_metrics: list[Metric] = Field(
        default=[],
        description=f"Of answers to validation rows, at each evaluation: {', '.join(FIGURES)}, {EVALUATE}NAME or "
        "FILE.py:FUNCTION, as evaluation.metrics; they are generated as `generation` says.",
    )
    metric_for_best_model: Text = Field(
        "loss", description="What the best weights and early stopping go by: a figure of the evaluation, e.g. rougeL."
    )
    greater_is_better: bool | None = Field(
        None, description="Of metric_for_best_model; by default of all whose names do not end with loss."
    )

    @property
    def goes_by_greater(self) -> bool:
        """Returns whether a greater metric_for_best_model is better."""
        given = self.greater_is_better
        return not self.metric_for_best_model.endswith("loss") if given is None else given

    def with_absolute_paths(self) -> Self:
        section, metrics = super().with_absolute_paths(), [absolute_metric(metric) for metric in self.eval_metrics]
        return section if metrics == self.eval_metrics else section.model_copy(update={"eval_metrics": metrics})


class PolicyTrainConfig(EvaluatedConfig):
    """Holds the training section of the stages that learn from a policy's own responses."""

    eval_metrics: list[Metric] = Field(
        default=[],
        description=f"Of the responses to data.test, at each evaluation: {', '.join(FIGURES)}, {EVALUATE}NAME or "
        "FILE.py:FUNCTION, as evaluation.metrics; data.completion says what a response should be.",
    )
    metric_for_best_model: Text = Field(
        "scores",
        description="What the best weights and early stopping go by: scores, the mean reward of the responses to "
        "data.test, or a figure of eval_metrics.",
    )


class TrainConfig(EvaluatedConfig):
    """Holds the training section of the stages that learn from rows as they are."""

    max_steps: Count | None = None
    num_train_epochs: Annotated[Float, Field(gt=0)] | None = None
    tokens_per_device: Count | None = Field(
        None, description="Instead of rows: tokens that a micro-batch may have, with its padding."
    )
    group_by_length: bool = Field(False, description="Rows of similar length share a step.")
    gradient_accumulation_steps: Count | None = Field(None, description="1, or what global_batch_size asks for.")
    global_batch_size: Count | None = Field(
        None,
        description="Rows an optimizer step: per_device_train_batch_size x gradient_accumulation_steps x processes.",
    )
    eval_answers: Count = Field(64, description="Validation rows, the first ones, that are answered for eval_metrics.")


MixedPrecision = Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_no_is_no)]


@dataclass(frozen=True)
class ScorerConfig:
    """Says how a classifier scores texts. A reward source, a measurement of toxicity and an evaluation of reward models
    each make one from their own keys."""

    model: ModelConfig
    label: str | None = None
    """Names, of a classifier with several labels, the one whose logit or probability is the score."""
    score: Literal["logit", "probability"] = "logit"
    template: str | None = None
    """Makes the text that is read, from {prompt} and {response}; None: as the model was trained."""
    max_length: int | None = None
    """Counts the tokens that are read, the last ones; None: as the model was trained."""
    normalize: bool = True
    """Tells whether scores are normalised by the mean and spread that a reward run saved with its model."""
    batch_size: int = 16
    quantization: Literal["8bit", "4bit"] | None = None
    mixed_precision: MixedPrecision = "no"


OF_MODEL = "by default what the model's own generation config says"


class GenerationConfig(Section):
    """Says how a model answers, in the terms of Transformers' generation config."""

    prompts: list[Text] | None = Field(None, description="For the generate stage; by default the prompts of data.test.")
    max_new_tokens: Count = 32
    min_new_tokens: Annotated[Int, Field(ge=0)] | None = Field(
        None, description=f"Before these no token that ends an answer is written; {OF_MODEL}."
    )
    temperature: Annotated[Float, Field(ge=0)] = Field(0.0, description="0 means greedy.")
    top_p: Annotated[Float, Field(gt=0, le=1)] = 1.0
    top_k: Count | None = Field(None, description="Draw from so many of the likeliest tokens; by default from all.")
    min_p: Annotated[Float, Field(ge=0, le=1)] | None = Field(
        None, description="Draw from tokens at least this share as likely as the likeliest."
    )
    typical_p: Annotated[Float, Field(gt=0, lt=1)] | None = Field(
        None, description="Draw from the tokens of locally typical information (Meister et al. 2023) with this mass."
    )
    seed: Annotated[Int, Field(ge=0)] = Field(0, description="Of what is drawn.")
    num_return_sequences: Count = Field(1, description="Answers a prompt, each drawn anew, or the best of the beams.")
    num_beams: Count = 1
    length_penalty: Float | None = Field(
        None, description=f"Of beams: the exponent of the length that a score is divided by; {OF_MODEL}."
    )
    early_stopping: bool | Literal["never"] | None = Field(
        None, description=f"Of beams: stop as soon as num_beams answers are complete; {OF_MODEL}."
    )
    repetition_penalty: Annotated[Float, Field(gt=0)] | None = Field(
        None, description=f"Above 1: tokens that are there already become less likely; {OF_MODEL}."
    )
    no_repeat_ngram_size: Annotated[Int, Field(ge=0)] | None = Field(
        None, description=f"No sequence of so many tokens is written twice; {OF_MODEL}."
    )
    stop: list[Text] | None = Field(
        None, min_length=1, description="An answer ends before the first of these texts in it."
    )


class ParallelConfig(Section):
    strategy: Literal["auto", "single", "ddp", "zero1", "zero2", "zero3", "fsdp2"] = Field(
        "ddp", description="auto: the one that communicates least and fits the memory a rank has."
    )
    num_processes: Count = Field(1, description="Over all nodes.")
    num_nodes: Count = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    offload_optimizer: bool = Field(False, description="ZeRO: keep the optimizer state in CPU memory and step there.")
    offload_parameters: bool = Field(False, description="ZeRO-3: keep parameters in CPU memory between uses.")
    gather_for_generation: Literal["auto"] | bool = Field(
        "auto",
        description="ZeRO-3 and FSDP2: gather weights once a rollout, which takes a whole copy of them on each rank, "
        "not layer by layer for every token. auto: where the copy fits.",
    )
    main_address: Text | None = Field(
        None, description="Where the nodes meet: a name or address of the first one; by default what it finds itself."
    )
    main_port: Port | None = Field(None, description="Free port on the first node; by default another at each start.")
    interface: Text | None = Field(
        None, description="Network interface between nodes, e.g. eth0; by default the one that the system chooses."
    )
    timeout_seconds: Count = Field(1800, description="A collective that waits longer ends the run.")
    heartbeat_timeout_seconds: Annotated[Int, Field(ge=10)] = Field(
        120, description="A worker whose process shows no sign of life for so long hangs: the run ends, and names it."
    )
    progress_timeout_seconds: Count | None = Field(
        None,
        description="A group of which no rank gets any further within its steps for so long hangs: the run ends, and "
        "names the rank that the others wait for; by default nine tenths of timeout_seconds.",
    )
    max_restarts: Annotated[Int, Field(ge=0)] = Field(
        0, description="How often a run whose worker died is started again, from the newest checkpoint."
    )


TRACKERS = Literal["wandb", "comet_ml", "mlflow", "aim", "clearml", "dvclive", "swanlab", "trackio"]
