"""Config + machine -> Plan, or every refusal at once. Starts no worker and loads no weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import Loaded
from scaleup.config.schema import ModelConfig, RunConfig, SourceConfig
from scaleup.config.stages import EvaluateConfig, GenerateConfig, SFTConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.arithmetic import epochs_to_rows, held_out_rows, rows_to_steps
from scaleup.plan.describe import describe_models
from scaleup.plan.facts import ModelFacts
from scaleup.plan.machine import Machine, this_machine
from scaleup.plan.memory import inference_memory, training_memory
from scaleup.plan.rules import config_problems, device_of, facts_problems, needed_splits
from scaleup.plan.types import BatchPlan, GroupPlan, MemoryPlan, Plan
from scaleup.records.check import DataCheck, check_data
from scaleup.records.examples import format_problems


def resolve(
    loaded: Loaded, machine: Machine | None = None, check_run_folder: bool = True, resume: bool = False
) -> tuple[RunConfig, Plan]:
    """The config and its plan. Raises ScaleupError with every mistake of the config, the data and the run folder, which
    may hold this very run unfinished only if it is to `resume`."""
    machine = machine or this_machine()
    problems = list(loaded.problems)
    if loaded.config is None:
        raise ScaleupError(problems)
    config = loaded.config
    known = {problem.where for problem in problems}
    data_check = _check_data(config)
    found = config_problems(config, machine) + data_check.problems + _hold_out_problems(config, data_check)
    problems += [problem for problem in found if not _is_within(problem.where, known)]
    if check_run_folder and not known & {"name", "runs_dir"}:
        problems += _run_folder_problems(config, resume)
    if problems:
        raise ScaleupError(problems)
    facts = describe_models(models_of(config))
    problems = [problem for where, found in facts.items() for problem in facts_problems(config, found, where)]
    if problems:
        raise ScaleupError(problems)
    return config, make_plan(config, machine, facts, data_check)


def _hold_out_problems(config: RunConfig, data: DataCheck) -> list[Problem]:
    if config.data.validation_fraction is None:
        return []
    return [
        Problem("data.validation_fraction", f"{summary.path} has one row, of which none can be held out", "add rows")
        for summary in data.sources.get("train", [])
        if summary.rows == 1
    ]


def _is_within(where: str, keys: Collection[str]) -> bool:
    return any(where == key or where.startswith(f"{key}.") for key in keys)


def models_of(config: RunConfig) -> dict[str, ModelConfig]:
    models = {"model": config.model}
    if isinstance(config, EvaluateConfig) and config.baseline is not None:
        models["baseline"] = config.baseline
    return models


def make_plan(config: RunConfig, machine: Machine, facts: dict[str, ModelFacts], data: DataCheck) -> Plan:
    group = _policy_group(config, machine)
    batch, notes = None, []
    if isinstance(config, SFTConfig):
        batch = _batch_plan(config, data)
        notes = _mixture_notes(config, batch, data)
    return Plan(
        stage=config.stage,
        name=config.name,
        run_folder=str(Path(config.runs_dir) / config.name),
        groups=[group],
        model=facts["model"],
        baseline=facts.get("baseline"),
        batch=batch,
        memory=_memory(config, facts["model"]),
        notes=notes,
    )


def _policy_group(config: RunConfig, machine: Machine) -> GroupPlan:
    parallel = config.parallel
    device: Literal["cpu", "cuda"] = "cuda" if device_of(config, machine) == "cuda" else "cpu"
    alone = parallel.num_processes == 1
    if alone:
        why = "one process needs no wrapper around the model"
    else:
        why = f"ddp: each of {parallel.num_processes} processes holds the whole model, gradients are averaged"
    per_node = parallel.num_processes // parallel.num_nodes
    multi: Literal["MULTI_CPU", "MULTI_GPU"] = "MULTI_CPU" if device == "cpu" else "MULTI_GPU"
    return GroupPlan(
        name="policy",
        num_processes=parallel.num_processes,
        num_nodes=parallel.num_nodes,
        device=device,
        backend="gloo" if device == "cpu" else "nccl",
        strategy="single" if alone else parallel.strategy,
        why=why,
        distributed_type="NO" if alone else multi,
        engine="none" if alone else "DistributedDataParallel",
        mixed_precision=config.mixed_precision,
        threads_per_process=max(1, machine.num_cores // per_node),
        main_address=parallel.main_address,
        main_port=parallel.main_port,
    )


def _batch_plan(config: SFTConfig, data: DataCheck) -> BatchPlan:
    train, world = config.train, config.parallel.num_processes
    per_pass = train.per_device_train_batch_size * world
    accumulation = train.gradient_accumulation_steps or (train.global_batch_size or per_pass) // per_pass
    global_batch = per_pass * accumulation
    counts = [summary.rows for summary in data.sources.get("train", [])]
    fraction = config.data.validation_fraction
    num_rows = None
    if not config.data.streaming and None not in counts:
        num_rows = sum(count - (held_out_rows(count, fraction) if fraction else 0) for count in counts if count)
    num_steps = train.max_steps
    if num_steps is None and num_rows is not None:
        num_steps = rows_to_steps(epochs_to_rows(train.num_train_epochs or 0.0, num_rows), global_batch)
    return BatchPlan(
        micro_batch=train.per_device_train_batch_size,
        accumulation=accumulation,
        global_batch=global_batch,
        num_steps=num_steps,
        num_train_rows=num_rows,
    )


def _mixture_notes(config: SFTConfig, batch: BatchPlan, data: DataCheck) -> list[str]:
    sources: Sequence[SourceConfig] = config.data.train or []
    summaries = data.sources.get("train", [])
    if len(sources) < 2 or batch.num_steps is None:
        return []
    total = sum(source.weight for source in sources)
    drawn = batch.num_steps * batch.global_batch
    notes = []
    for source, summary in zip(sources, summaries, strict=True):
        share = source.weight / total
        passes = f", {drawn * share / summary.rows:.2f} passes over it" if summary.rows else ""
        notes.append(f"{source.path}: {share:.0%} of the rows drawn{passes}")
    return notes


def _memory(config: RunConfig, facts: ModelFacts) -> list[MemoryPlan]:
    if isinstance(config, SFTConfig):
        return [training_memory(facts, config.train, strategy) for strategy in ("single", "ddp")]
    return [inference_memory(facts, strategy) for strategy in ("single", "ddp")]


def _check_data(config: RunConfig) -> DataCheck:
    splits = [split for split in needed_splits(config) if getattr(config.data, split) is not None]
    prompts_only = isinstance(config, GenerateConfig)
    check = check_data(config.data, splits, prompts_only=prompts_only)
    return DataCheck(format_problems(config.data, splits, prompts_only) + check.problems, check.sources)


def _run_folder_problems(config: RunConfig, resume: bool) -> list[Problem]:
    run = RunFolder(Path(config.runs_dir) / config.name)
    try:
        state = run.state(config)
    except ScaleupError as error:
        return error.problems
    except OSError as error:
        return [Problem("runs_dir/name", f"cannot be read: {error}", "choose another")]
    if state != "unfinished" or resume:
        return []
    remedy = "continue it with --resume, or choose another name"
    return [Problem(f"runs_dir/name ({run.path})", "holds this very run, unfinished", remedy)]
