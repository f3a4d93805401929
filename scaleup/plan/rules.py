"""What cannot work, by name, before anything loads. Each rule looks at a config (and the machine) and yields its
problems; `config_problems` runs them all, so a user sees every mistake at once."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from scaleup.config.schema import RunConfig
from scaleup.config.stages import (
    CardConfig,
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    PPOConfig,
    PruneConfig,
    QuantizeConfig,
    SupervisedConfig,
    TrainingConfig,
)
from scaleup.errors import Problem
from scaleup.plan.adapters import adapter_problems
from scaleup.plan.batches import batch_size_problems, batching_problems, packing_problems
from scaleup.plan.card import VARIANTS, card_problems
from scaleup.plan.compression import (
    compression_facts_problems,
    export_problems,
    quantize_problems,
    quantized_model_problems,
)
from scaleup.plan.distill import TEACHER, distill_problems
from scaleup.plan.facts import ModelFacts
from scaleup.plan.groups import device_of
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import model_path_problems, peek_model_type
from scaleup.plan.on_policy import on_policy_problems
from scaleup.plan.patience import patience_problems
from scaleup.plan.prune import prune_problems, row_kind_problems
from scaleup.plan.reward import preference_problems, reward_model_problems, scored_problems
from scaleup.plan.reward_source import reward_source_problems
from scaleup.plan.rollouts import num_steps, response_problems, rollout_problems
from scaleup.plan.saved_adapters import side_by_side_problems
from scaleup.plan.toxicity import TOXICITY_MODEL, toxicity_model_problems, toxicity_problems
from scaleup.records.examples import row_format

Rule = Callable[[RunConfig, Machine], Iterator[Problem]]


def config_problems(config: RunConfig, machine: Machine) -> list[Problem]:
    return [problem for rule in RULES for problem in rule(config, machine)]


def needed_splits(config: RunConfig) -> list[str]:
    """The data splits that the stage reads."""
    if isinstance(config, EvaluateConfig):
        return [config.evaluation.split]
    if isinstance(config, CardConfig):
        return ["test"]
    if isinstance(config, GenerateConfig):
        return [] if config.generation.prompts else ["test"]
    if isinstance(config, ExportConfig):
        needs = config.export.num_rows and config.export.format != "onnx"
        return ["test"] if config.data.test and needs else []
    if isinstance(config, PruneConfig):
        learns = config.prune.needs_calibration or config.recovery is not None
        held_out = ["validation"] * (config.recovery is not None and bool(config.data.validation))
        return ["train"] * learns + held_out + ["test"] * bool(config.data.test)
    if isinstance(config, QuantizeConfig):
        return ["test"] if config.data.test else []
    if isinstance(config, PPOConfig):
        return ["train", "test"] if config.data.test else ["train"]
    return ["train", "validation"] if config.data.validation else ["train"]


def reads_prompts_only(config: RunConfig) -> bool:
    """Whether rows need no completion."""
    if isinstance(config, EvaluateConfig):
        return not config.evaluation.needs_completions
    if isinstance(config, DistillConfig):
        return config.distill.mode == "on_policy"
    return isinstance(config, GenerateConfig | PPOConfig)


def prompt_splits(config: RunConfig) -> list[str]:
    """The splits whose rows need no completion."""
    if isinstance(config, DistillConfig) and config.distill.mode == "sequence":
        return ["train"]
    return needed_splits(config) if reads_prompts_only(config) else []


REWARD_MODEL = "reward.model"
"""The config key, and what the facts of that model go by."""


def facts_problems(config: RunConfig, facts: ModelFacts, where: str) -> list[Problem]:
    """What only the model's own files can tell."""
    if isinstance(config, PPOConfig) and where == REWARD_MODEL:
        return _scorer_problems(config, facts)
    if isinstance(config, CardConfig) and where.startswith(f"{VARIANTS}."):
        return list(_position_problems(config, facts, where))
    if where == TOXICITY_MODEL:
        return toxicity_model_problems(config, facts)
    problems: list[Problem] = []
    if config.mixed_precision == "fp16" and facts.model_type in T5_FAMILY:
        problems.append(_t5_in_fp16())
    if isinstance(config, PPOConfig):
        problems += response_problems(config, facts)
    if isinstance(config, ExportConfig):  # which takes of a row what there are positions for
        if config.export.dtype == "float16" and facts.model_type in T5_FAMILY:
            problems.append(_t5_in_fp16("export.dtype"))
    elif needed_splits(config) or not isinstance(config, PruneConfig):
        problems += _position_problems(config, facts, where)
    if facts.tokenizer_size > facts.vocab_size:
        what = f"the tokenizer has {facts.tokenizer_size} ids, and {where} only {facts.vocab_size} embeddings"
        problems.append(Problem(f"{where}.tokenizer", what, "use the model's own tokenizer"))
    sources = [source for split in needed_splits(config) for source in getattr(config.data, split) or []]
    formats = [row_format(config.data, source) for source in sources]
    if facts.task == "seq2seq_lm":
        what = f"{where} is an encoder-decoder model, which needs a prompt and a completion"
        used = [key for key in ("text", "messages") if any(getattr(form, key) for form in formats)]
        problems += [Problem(f"data.{key}", what, "give data.prompt and data.completion") for key in used]
    elif not facts.has_chat_template and any(form.messages for form in formats):
        what = f"{where}'s tokenizer has no chat template"
        problems.append(
            Problem("data.messages", what, "use prompt and completion, or a tokenizer with a chat template")
        )
    problems += compression_facts_problems(config, facts)
    problems += row_kind_problems(config, facts, formats)
    return [*problems, *packing_problems(config, facts), *scored_problems(config, facts, where)]


def _scorer_problems(config: PPOConfig, facts: ModelFacts) -> list[Problem]:
    problems = reward_model_problems(config.reward, facts)
    if config.reward.mixed_precision == "fp16" and facts.model_type in T5_FAMILY:
        problems.append(Problem("reward.mixed_precision", "T5 models overflow in fp16", 'use bf16, or "no"'))
    return problems


def _position_problems(config: RunConfig, facts: ModelFacts, where: str) -> Iterator[Problem]:
    if facts.max_positions is None:
        return
    virtual = facts.num_virtual_tokens
    most = facts.max_positions - virtual
    beside = f" beside {virtual} virtual tokens" if virtual else ""
    if most < 2:
        what = f"{virtual} virtual tokens leave no room for a row in {where}'s {facts.max_positions} positions"
        yield Problem("adapter.num_virtual_tokens", what, "use fewer")
    elif config.data.max_length > most:
        what = f"{config.data.max_length} tokens are more than the {most} that {where} has positions for{beside}"
        yield Problem("data.max_length", what, f"use at most {most}")
    generation = config.generation if isinstance(config, EvaluateConfig | GenerateConfig) else None
    if generation and generation.max_new_tokens >= most:
        what = f"{generation.max_new_tokens} leave no room for a prompt in {where}'s {most} positions{beside}"
        yield Problem("generation.max_new_tokens", what, "use fewer")


T5_FAMILY = {"t5", "mt5", "umt5", "longt5", "switch_transformers"}


def _t5_in_fp16(key: str = "mixed_precision") -> Problem:
    remedy = 'use bf16, or "no"' if key == "mixed_precision" else "use bfloat16 or float32"
    return Problem(key, "T5 models overflow in fp16", remedy)


def _model(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    yield from model_path_problems(config.model, "model", not machine.is_described)
    if isinstance(config, EvaluateConfig) and config.baseline is not None:
        yield from model_path_problems(config.baseline, "baseline", not machine.is_described)
    if isinstance(config, DistillConfig):
        yield from model_path_problems(config.teacher, TEACHER, not machine.is_described)


def _precision(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    if config.mixed_precision != "fp16":
        return
    if peek_model_type(config.model) in T5_FAMILY:
        yield _t5_in_fp16()
    if device_of(config.parallel, machine) == "cpu":
        yield Problem("mixed_precision", "fp16 needs a GPU, and this run is on the CPU", 'use bf16, or "no"')


def _parallel(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    parallel = config.parallel
    if parallel.strategy == "single" and parallel.num_processes > 1:
        what = f"'single' is one process, and num_processes is {parallel.num_processes}"
        yield Problem("parallel.strategy", what, "use ddp")
    chooses = parallel.strategy == "auto"  # then among those that can offload
    if parallel.offload_optimizer and not (chooses or parallel.strategy.startswith("zero")):
        yield Problem("parallel.offload_optimizer", f"{parallel.strategy} cannot", "use zero1, zero2 or zero3")
    if parallel.offload_parameters and not (chooses or parallel.strategy == "zero3"):
        yield Problem("parallel.offload_parameters", f"{parallel.strategy} cannot", "use zero3")
    if parallel.offload_optimizer and isinstance(config, TrainingConfig) and config.train.optimizer != "adamw":
        what = f"DeepSpeed's CPU optimizer is AdamW, not {config.train.optimizer}"
        yield Problem("parallel.offload_optimizer", what, "use train.optimizer: adamw")
    if parallel.num_processes % parallel.num_nodes:
        what = f"{parallel.num_processes} processes do not divide over {parallel.num_nodes} nodes"
        yield Problem("parallel.num_processes", what, f"use a multiple of {parallel.num_nodes}")
    if device_of(config.parallel, machine) == "cuda":
        per_node = parallel.num_processes // parallel.num_nodes
        if parallel.num_nodes == 1 and per_node > machine.num_gpus:
            what = f"{per_node} processes need {per_node} GPUs, and this machine has {machine.num_gpus}"
            yield Problem("parallel.num_processes", what, "use fewer processes, or parallel.device=cpu")


def _optimization(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    if not isinstance(config, TrainingConfig):
        return
    train = config.train
    steps, named = getattr(train, "max_steps", None), "max_steps"
    if isinstance(config, PPOConfig):
        steps, named = num_steps(config), "the run's optimizer steps,"
    if train.warmup_steps is not None and train.warmup_ratio is not None:
        yield Problem("train.warmup_steps", "and train.warmup_ratio exclude each other", "give one")
    if train.warmup_steps is not None and steps is not None and train.warmup_steps > steps:
        yield Problem("train.warmup_steps", f"is longer than {named} {steps}", "use fewer")
    if train.momentum and train.optimizer != "sgd":
        yield Problem("train.momentum", f"has no meaning for {train.optimizer}", "use optimizer sgd, or leave it out")


def _train(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    if not isinstance(config, SupervisedConfig):
        return
    train, data = config.train, config.data
    if (train.max_steps is None) == (train.num_train_epochs is None):
        what = "is needed" if train.max_steps is None else "and train.num_train_epochs exclude each other"
        yield Problem("train.max_steps", what, "give max_steps or num_train_epochs")
    has_validation = bool(data.validation) or data.validation_fraction is not None
    for key in ("eval_steps", "early_stopping_patience", "load_best_model_at_end"):
        if getattr(train, key) and not has_validation:
            yield Problem(f"train.{key}", "needs validation rows", "give data.validation or data.validation_fraction")
    for key in ("early_stopping_patience", "load_best_model_at_end"):
        if getattr(train, key) and has_validation and train.eval_steps is None:
            yield Problem(f"train.{key}", "needs evaluation during training", "give train.eval_steps")


def _data(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    data = config.data
    for split in needed_splits(config):
        if getattr(data, split) is None:
            yield Problem(f"data.{split}", f"is needed by the {config.stage} stage", "name the rows' file")
    if data.validation and data.validation_fraction is not None:
        yield Problem("data.validation_fraction", "and data.validation exclude each other", "give one")
    if not isinstance(config, SupervisedConfig) or not data.streaming:
        return
    if data.validation_fraction is not None:
        yield Problem("data.validation_fraction", "cannot be drawn from streamed rows", "give data.validation")
    if config.train.max_steps is None and config.train.num_train_epochs is not None:
        yield Problem("train.num_train_epochs", "streamed rows are not counted beforehand", "give train.max_steps")


def _evaluation(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    evaluation = getattr(config, "evaluation", None)
    if evaluation is None or isinstance(config, GenerateConfig):
        return
    if "accuracy" in evaluation.metrics and not evaluation.labels:
        yield Problem("evaluation.labels", "is needed for accuracy", "list the labels, e.g. [positive, negative]")
    generated = [metric for metric in evaluation.metrics if metric != "perplexity"]
    if generated and config.data.text and not reads_prompts_only(config):
        yield Problem("evaluation.metrics", f"{generated[0]} needs answers, and data.text has none", "use perplexity")
    if (generation := getattr(config, "generation", None)) and generation.top_p < 1 and generation.temperature == 0:
        yield Problem("generation.top_p", "has no meaning for greedy decoding", "give a temperature above 0")


def _report_to(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    for tracker in getattr(config, "report_to", []):
        spec = importlib.util.find_spec(tracker)
        if spec is None or spec.origin is None:  # a mere folder of that name has no origin
            yield Problem("report_to", f"the tracker {tracker!r} is not installed", f"pip install {tracker}")


def _runs_dir(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    place = Path(config.runs_dir)
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        yield Problem("runs_dir", f"{place} is no folder", "name a folder")
    elif not os.access(place, os.W_OK | os.X_OK):
        yield Problem("runs_dir", f"{place} cannot be written", "name a folder that can")


RULES: list[Rule] = [
    _model,
    _precision,
    _parallel,
    patience_problems,
    adapter_problems,
    export_problems,
    quantize_problems,
    quantized_model_problems,
    side_by_side_problems,
    prune_problems,
    distill_problems,
    on_policy_problems,
    preference_problems,
    batch_size_problems,
    batching_problems,
    rollout_problems,
    reward_source_problems,
    _optimization,
    _train,
    _data,
    _evaluation,
    toxicity_problems,
    card_problems,
    _report_to,
    _runs_dir,
]
