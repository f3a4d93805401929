"""The stages and what each one's config holds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from scaleup.config.adapters import AdapterConfig, Quantization
from scaleup.config.card import CardSettings, Variants
from scaleup.config.compression import ExportSettings, QuantizeSettings
from scaleup.config.distill import DistillSettings
from scaleup.config.prune import PruneSettings, RecoverySettings
from scaleup.config.rl import PPOSettings, RewardModelSettings, RewardSource
from scaleup.config.schema import (
    TRACKERS,
    DataConfig,
    EvaluationConfig,
    GenerationConfig,
    ModelConfig,
    Name,
    OptimizationConfig,
    PathText,
    RunConfig,
    TrainConfig,
)

QUANTIZATION = "Matrices of the base model in 8 bits (LLM.int8) or 4 (nf4, quantized twice), through bitsandbytes."
SIDE_BY_SIDE = "Several adapters of the base that model.path names, each a folder or a finished run"

Adapters = Annotated[dict[Name, PathText], Field(min_length=1)]
"""A name for the results -> an adapter."""


class TrainingConfig(RunConfig):
    """What every stage that trains a model has: of the whole model, or of an adapter."""

    train: OptimizationConfig = Field(default_factory=OptimizationConfig)
    adapter: AdapterConfig | None = Field(
        None, description="Train this instead of the whole model. A model.path that is an adapter is trained further."
    )
    quantization: Quantization | None = Field(None, description=QUANTIZATION)
    gradient_checkpointing: bool = False
    report_to: list[TRACKERS] = Field(
        default_factory=list, description="Trackers beside TensorBoard, through Accelerate."
    )


class SupervisedConfig(TrainingConfig):
    """What the stages have in common that learn from rows as they are."""

    train: TrainConfig
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="What `scaleup evaluate RUN` measures."
    )


class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning, causal or encoder-decoder: of the whole model, or of an adapter."""

    stage: Literal["sft"]
    generation: GenerationConfig = Field(default_factory=GenerationConfig)


class RewardConfig(SupervisedConfig):
    """A reward model from preferences: a backbone of any kind with a head of one score, trained on pairs of a chosen
    and a rejected response. Also a sequence classifier of one label, which is trained further."""

    stage: Literal["reward"]
    reward: RewardModelSettings = Field(default_factory=RewardModelSettings)


class DistillConfig(SupervisedConfig):
    """A student, which learns from rows and from what its teacher makes of them; both causal models, both
    encoder-decoder models or both classifiers, with one tokenizer. `model` is what the student starts as."""

    stage: Literal["distill"]
    teacher: ModelConfig = Field(description="Frozen; it may be an adapter.")
    distill: DistillSettings = Field(default_factory=DistillSettings)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)


class PPOConfig(TrainingConfig):
    """Reinforcement learning from a reward: `model` and `parallel` are the policy's, `reward` may be a group of its
    own. Rows give prompts; those of data.test are held out, and answered before and after."""

    stage: Literal["ppo"]
    ppo: PPOSettings
    reward: RewardSource
    adapter: AdapterConfig | None = Field(
        None, description="Train this instead of the whole model; the reference is the model without it."
    )
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="What `scaleup evaluate RUN` measures."
    )
    generation: GenerationConfig | None = Field(
        None, description="How it answers then; by default greedily, with up to ppo.max_new_tokens tokens."
    )


class EvaluateConfig(RunConfig):
    """Metrics of a model on held-out rows, beside those of a baseline where one is named."""

    stage: Literal["evaluate"]
    baseline: ModelConfig | None = Field(None, description="The model to compare with: the 'before' column.")
    adapters: Adapters | None = Field(
        None, description=f"{SIDE_BY_SIDE}: a column for each name, the base is the 'before' column."
    )
    quantization: Quantization | None = Field(None, description=QUANTIZATION)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)


class GenerateConfig(RunConfig):
    """Text from a model, for prompts given here or those of data.test."""

    stage: Literal["generate"]
    adapters: Adapters | None = Field(None, description=f"{SIDE_BY_SIDE}: each answers every prompt.")
    quantization: Quantization | None = Field(None, description=QUANTIZATION)
    data: DataConfig = Field(default_factory=DataConfig)
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)


class ExportConfig(RunConfig):
    """A model for others, as it is or with its adapter merged into the unquantized base: as plain Transformers,
    llama.cpp or ONNX Runtime loads it."""

    stage: Literal["export"]
    data: DataConfig = Field(default_factory=DataConfig)
    export: ExportSettings = Field(default_factory=ExportSettings)


class QuantizeConfig(RunConfig):
    """A model whose weights take fewer bits, as a folder that plain Transformers loads."""

    stage: Literal["quantize"]
    data: DataConfig = Field(default_factory=DataConfig)
    quantize: QuantizeSettings


class CardConfig(RunConfig):
    """A deployment card: quality, size, memory and speed of a model's variants beside the model itself, and whether
    each is a real gain."""

    stage: Literal["card"]
    model: ModelConfig = Field(description="What the variants come from: they are compared with it.")
    variants: Variants
    card: CardSettings = Field(default_factory=CardSettings)
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="The task's metrics, beside perplexity."
    )
    generation: GenerationConfig = Field(default_factory=GenerationConfig)


class PruneConfig(RunConfig):
    """A smaller model made of a larger one: fewer layers, narrower MLPs, fewer heads, or zeros. Rows of data.train
    calibrate what goes, and train what is left where `recovery` says so; with data.test perplexity is measured before
    and after. A sequence classifier's rows are texts with a class (data.text, data.label), and accuracy is measured."""

    stage: Literal["prune"]
    data: DataConfig = Field(default_factory=DataConfig)
    prune: PruneSettings
    recovery: RecoverySettings | None = Field(None, description="What is cut is trained again, by distillation.")


STAGES: dict[str, type[RunConfig]] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "ppo": PPOConfig,
    "distill": DistillConfig,
    "prune": PruneConfig,
    "quantize": QuantizeConfig,
    "export": ExportConfig,
    "card": CardConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
}

AnyConfig = Annotated[
    SFTConfig
    | RewardConfig
    | PPOConfig
    | DistillConfig
    | PruneConfig
    | QuantizeConfig
    | ExportConfig
    | CardConfig
    | EvaluateConfig
    | GenerateConfig,
    Field(discriminator="stage"),
]


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    schema = TypeAdapter(AnyConfig).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "scaleup run config", **schema}
