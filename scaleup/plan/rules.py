"""A config, the machine and models' facts go in; problems that any stage may have come out, by name before anything
loads: a config's conflicts with itself and the machine, and a model's files' with the run. Each planner of a stage
calls these beside rules of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from scaleup.artifacts.files import folder_problem
from scaleup.artifacts.run_folder import unwritable
from scaleup.config.data import RowFormat
from scaleup.config.run import RunConfig
from scaleup.config.schema import GenerationConfig, ModelConfig, ParallelConfig
from scaleup.config.stages.base import TrainingConfig
from scaleup.errors import Problem
from scaleup.plan.facts import ModelFacts
from scaleup.plan.groups import device_of
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import peek_model_type, quantization_of
from scaleup.records.format_rules import chat_key, holds_class, holds_preferences


def precision_problems(config: RunConfig, facts: ModelFacts) -> Iterator[Problem]:
    """Yields T5's refusal of half precision."""
    if config.mixed_precision == "fp16" and is_t5(facts.model_type):
        yield t5_in_fp16("mixed_precision")


def position_problems(
    max_length: int, answers: GenerationConfig | None, facts: ModelFacts, where: str
) -> Iterator[Problem]:
    """Yields rows of `max_length` tokens, and answers, that are longer than a model has positions for."""
    if facts.max_positions is None:
        return
    virtual = facts.num_virtual_tokens
    most = facts.max_positions - virtual
    beside = f" beside {virtual} virtual tokens" if virtual else ""
    if most < 2:
        what = f"{virtual} virtual tokens leave no room for a row in {where}'s {facts.max_positions} positions"
        yield Problem("adapter.num_virtual_tokens", what, "use fewer")
    elif max_length > most:
        what = f"{max_length} tokens are more than the {most} that {where} has positions for{beside}"
        yield Problem("data.max_length", what, f"use at most {most}")
    if answers and answers.max_new_tokens >= most:
        what = f"{answers.max_new_tokens} leave no room for a prompt in {where}'s {most} positions{beside}"
        yield Problem("generation.max_new_tokens", what, "use fewer")


def row_problems(facts: ModelFacts, where: str, forms: Sequence[RowFormat], has_template: bool) -> Iterator[Problem]:
    """Yields rows that a model cannot read: ids without an embedding, formats without a meaning for it.
    `has_template`: the config names a chat template."""
    if facts.tokenizer_size > facts.vocab_size:
        what = f"the tokenizer has {facts.tokenizer_size} ids, and {where} only {facts.vocab_size} embeddings"
        yield Problem(f"{where}.tokenizer", what, "use the model's own tokenizer")
    if facts.task == "seq2seq_lm":
        what = f"{where} is an encoder-decoder model, which needs a prompt and a completion"
        unfit = ("text" if form.text else chat_key(form) for form in forms)
        for name in dict.fromkeys(key for key in unfit if key):
            yield Problem(f"data.{name}", what, "give data.prompt and data.completion")
    elif not (facts.has_chat_template or has_template) and (keys := [key for form in forms if (key := chat_key(form))]):
        what = f"{where}'s tokenizer has no chat template"
        yield Problem(f"data.{keys[0]}", what, "name one with data.chat_template, or use prompt and completion")


T5_FAMILY = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers"})


def is_t5(model_type: str | None) -> bool:
    return model_type in T5_FAMILY


def t5_in_fp16(key: str) -> Problem:
    """Returns the one refusal of T5 in half precision: its activations are larger than fp16 can hold."""
    remedies = {
        "export.dtype": "use bfloat16 or float32",
        "quantize.method": "use bfloat16 or int8_weight_only",
    }
    return Problem(key, "T5 models overflow in fp16", remedies.get(key, 'use bf16, or "no"'))


def packing_unsupported(models: str) -> Problem:
    """Returns the refusal of packing for `models` (a plural noun) that read each text by itself."""
    return Problem("data.packing", f"not supported for {models}", "remove it")


def no_class_named() -> Problem:
    """Returns the one refusal of rows without a class where a classifier reads them."""
    what = "says nothing of a text's class, and model is a classifier"
    return Problem("data", what, "give data.text and data.label")


def generation_problems(generation: GenerationConfig, where: str) -> Iterator[Problem]:
    """Yields settings of answers that mean nothing together; `where` is the section's key."""
    is_drawn, beams, several = generation.temperature > 0, generation.num_beams, generation.num_return_sequences
    way = "a beam search" if beams > 1 else "greedy decoding"
    drawing = {"top_p": generation.top_p < 1} | {
        key: getattr(generation, key) is not None for key in ("top_k", "min_p", "typical_p")
    }
    if is_drawn and beams > 1:
        what = "a beam search looks for the likeliest answers, and draws none"
        yield Problem(f"{where}.temperature", what, f"set it to 0, or {where}.num_beams to 1")
    elif not is_drawn:
        for key in (key for key, is_given in drawing.items() if is_given):
            yield Problem(f"{where}.{key}", f"has no meaning for {way}", "give a temperature above 0")
    if beams == 1:
        for key in ("length_penalty", "early_stopping"):
            if getattr(generation, key) is not None:
                yield Problem(f"{where}.{key}", "is of beams, and num_beams is 1", "leave it out, or give num_beams")
    if several > 1 and beams == 1 and not is_drawn:
        what = f"greedy decoding would give the same answer {several} times"
        yield Problem(f"{where}.num_return_sequences", what, "give a temperature above 0, or num_beams")
    elif several > beams > 1:
        what = f"{several} are more than the {beams} beams"
        yield Problem(f"{where}.num_return_sequences", what, f"use at most {beams}, or more num_beams")
    if (generation.min_new_tokens or 0) > generation.max_new_tokens:
        what = f"{generation.min_new_tokens} are more than max_new_tokens {generation.max_new_tokens}"
        yield Problem(f"{where}.min_new_tokens", what, "use fewer")


def one_answer(generation: GenerationConfig, where: str, why: str) -> Iterator[Problem]:
    """Yields several answers a prompt where one is wanted."""
    if generation.num_return_sequences > 1:
        yield Problem(f"{where}.num_return_sequences", why, "leave it out; stage generate writes several")


def few_shot_problems(config: RunConfig, forms: Sequence[RowFormat], is_taken: bool) -> Iterator[Problem]:
    """Yields examples before prompts that a stage or its rows have no place for; `forms` are the formats of all
    rows."""
    settings, where = config.data.few_shot, "data.few_shot"
    if settings is None:
        return
    if not is_taken:
        yield Problem(where, f"has no meaning for {config.stage}", "leave it out; evaluate and generate take it")
        return
    if any(form.text is not None or holds_preferences(form) or holds_class(form) for form in forms):
        yield Problem(where, "is of prompts with a completion, and the rows are others", "leave it out")
    if settings.indices is not None:
        for key in ("num_examples", "seed", "balanced"):
            if key in settings.given:
                yield Problem(f"{where}.{key}", "is of examples that are drawn, and indices names them", "give one")


def optimizer_problems(config: TrainingConfig) -> Iterator[Problem]:
    """Yields an optimizer that cannot be offloaded, nor sharded."""
    strategy, kind = config.parallel.strategy, config.train.optimizer
    if kind == "adamw_8bit" and strategy not in ("single", "ddp"):
        why = "may choose one that shards" if strategy == "auto" else "would shard its moments, and the scales of them"
        what = f"{kind} is for single and ddp, and {strategy} {why}"
        yield Problem("train.optimizer", what, "use ddp, or adamw")
    if config.parallel.offload_optimizer and config.train.optimizer != "adamw":
        what = f"DeepSpeed's CPU optimizer is AdamW, not {config.train.optimizer}"
        yield Problem("parallel.offload_optimizer", what, "use train.optimizer: adamw")


def quantized_beside(where: str, model: ModelConfig) -> Iterator[Problem]:
    """Yields the refusal of a quantized model beside the one that is trained, at the config key `where`."""
    if (method := quantization_of(model.path)) is not None:
        what = f"{model.path} is quantized already ({method}), and strategies shard plain weights"
        yield Problem(f"{where}.path", what, "name the unquantized model")


def quantized_twice(model: ModelConfig, quantization: str | None) -> Iterator[Problem]:
    """Yields `quantization` beside a model whose folder holds quantized weights."""
    if quantization is not None and (method := quantization_of(model.path)) is not None:
        yield Problem("quantization", f"{model.path} is quantized already ({method})", "leave it out")


def one_process(config: RunConfig, what: str, why: str, instead: str) -> Iterator[Problem]:
    """Yields several processes, and a precision other than float32, where one process writes weights."""
    if config.parallel.num_processes > 1:
        yield Problem("parallel.num_processes", f"{what} is one process", "leave it out")
    if config.mixed_precision != "no":
        yield Problem("mixed_precision", why, f"leave it out; {instead}")


def arithmetic_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    if config.mixed_precision != "fp16":
        return
    if is_t5(peek_model_type(config.model)):
        yield t5_in_fp16("mixed_precision")
    if device_of(config.parallel, machine) == "cpu":
        yield Problem("mixed_precision", "fp16 needs a GPU, and this run is on the CPU", 'use bf16, or "no"')


def single_problems(parallel: ParallelConfig, where: str) -> Iterator[Problem]:
    """Yields several processes under the strategy `single`; `where` is the section's key."""
    if parallel.strategy == "single" and parallel.num_processes > 1:
        what = f"'single' is one process, and num_processes is {parallel.num_processes}"
        yield Problem(f"{where}.strategy", what, "use ddp")


def parallel_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    parallel = config.parallel
    yield from single_problems(parallel, "parallel")
    chooses = parallel.strategy == "auto"  # then among those that can offload
    if parallel.offload_optimizer and not (chooses or parallel.strategy.startswith("zero")):
        yield Problem("parallel.offload_optimizer", f"{parallel.strategy} cannot", "use zero1, zero2 or zero3")
    if parallel.offload_parameters and not (chooses or parallel.strategy == "zero3"):
        yield Problem("parallel.offload_parameters", f"{parallel.strategy} cannot", "use zero3")
    if parallel.num_processes % parallel.num_nodes:
        what = f"{parallel.num_processes} processes do not divide over {parallel.num_nodes} nodes"
        yield Problem("parallel.num_processes", what, f"use a multiple of {parallel.num_nodes}")
    if device_of(config.parallel, machine) == "cuda":
        per_node = parallel.num_processes // parallel.num_nodes
        if parallel.num_nodes == 1 and per_node > machine.num_gpus:
            what = f"{per_node} processes need {per_node} GPUs, and this machine has {machine.num_gpus}"
            yield Problem("parallel.num_processes", what, "use fewer processes, or parallel.device=cpu")


def tracker_problems(config: RunConfig) -> Iterator[Problem]:
    for tracker in getattr(config, "report_to", []):
        spec = importlib.util.find_spec(tracker)
        if spec is None or spec.origin is None:  # a mere folder of that name has no origin
            yield Problem("report_to", f"the tracker {tracker!r} is not installed", f"pip install {tracker}")


def runs_dir_problems(config: RunConfig) -> Iterator[Problem]:
    """Yields why nothing could be written where the run goes. Leaves no trace there."""
    run = Path(config.runs_dir) / config.name
    place = run if run.is_symlink() else run.parent
    if why := folder_problem(place):
        yield unwritable(place, why)


def split_problems(config: RunConfig, splits: Iterable[str]) -> Iterator[Problem]:
    """Yields data splits that the stage reads and the config does not name, and two ways to hold rows out."""
    data, splits = config.data, list(splits)
    if data.supervised and "supervised" not in splits:
        instead = "set algorithm.ptx_coef" if hasattr(config, "algorithm") else "use data.train"
        yield Problem("data.supervised", f"has no meaning for {config.stage}", f"leave it out, or {instead}")
    for split, use in (("retain", "measures it"), ("regularization", "has regularization")):
        if getattr(data, split) and not hasattr(config, "regularization"):
            what = f"has no meaning for {config.stage}"
            yield Problem(f"data.{split}", what, f"leave it out: stage sft {use}")
    for split in splits:
        if getattr(data, split) is None:
            yield Problem(f"data.{split}", f"is needed by the {config.stage} stage", "name the rows' file")
    if data.validation and data.validation_fraction is not None:
        yield Problem("data.validation_fraction", "and data.validation exclude each other", "give one")
