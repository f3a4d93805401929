"""Config + machine -> Plan, or every refusal at once. Starts no worker and loads no weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import Loaded
from scaleup.config.schema import ModelConfig, RunConfig, SourceConfig
from scaleup.config.stages import EvaluateConfig, GenerateConfig, SFTConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.batches import batch_plan
from scaleup.plan.deepspeed import deepspeed_settings
from scaleup.plan.describe import describe_models
from scaleup.plan.facts import ModelFacts
from scaleup.plan.machine import Machine, this_machine
from scaleup.plan.memory import inference_memory, training_memory
from scaleup.plan.resume import state_of
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
        batch = batch_plan(config, data_check) if isinstance(config, SFTConfig) and not problems else None
        problems += _run_folder_problems(config, batch, resume)
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
        batch = batch_plan(config, data)
        notes = _mixture_notes(config, batch, data) + _memory_notes(group.strategy)
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
    return GroupPlan(
        name="policy",
        num_processes=parallel.num_processes,
        num_nodes=parallel.num_nodes,
        device=device,
        backend="gloo" if device == "cpu" else "nccl",
        mixed_precision=config.mixed_precision,
        threads_per_process=max(1, machine.num_cores * parallel.num_nodes // parallel.num_processes),
        main_address=parallel.main_address,
        main_port=parallel.main_port,
        **_strategy(config, device),
    )


def _strategy(config: RunConfig, device: str) -> dict[str, Any]:
    """What the strategy decides of a group: its name and why, and what must come up in every worker."""
    strategy, count = config.parallel.strategy, config.parallel.num_processes
    if strategy.startswith("zero") and isinstance(config, SFTConfig):
        stage = int(strategy.removeprefix("zero"))
        sharded = ["optimizer state", "gradients", "parameters"][:stage]
        why = f"ZeRO-{stage}: {', '.join(sharded)} sharded over {count} process(es) by DeepSpeed"
        settings = deepspeed_settings(config, stage)
        expected = {"distributed_type": "DEEPSPEED", "engine": "DeepSpeedEngine", "zero_stage": stage}
        return {"strategy": strategy, "why": why, "deepspeed": settings, **expected}
    if strategy == "fsdp2" and isinstance(config, SFTConfig):
        why = f"parameters, gradients and optimizer state sharded over {count} process(es) by torch"
        return {"strategy": strategy, "why": why, "distributed_type": "FSDP", "engine": "FSDPModule"}
    if count == 1:
        why = "one process needs no wrapper around the model"
        return {"strategy": "single", "why": why, "distributed_type": "NO", "engine": "none"}
    why = f"each of {count} processes holds the whole model"
    multi = "MULTI_CPU" if device == "cpu" else "MULTI_GPU"
    return {"strategy": "ddp", "why": why, "distributed_type": multi, "engine": "DistributedDataParallel"}


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
        counted = summary.rows if batch.unit == "rows" else None
        passes = f", {drawn * share / counted:.2f} passes over it" if counted else ""
        notes.append(f"{source.path}: {share:.0%} of the rows drawn{passes}")
    return notes


def _memory_notes(strategy: str) -> list[str]:
    if strategy in ("single", "ddp"):
        return []
    return [f"what a rank holds under {strategy} is not estimated yet; the table is for replicated strategies"]


def _memory(config: RunConfig, facts: ModelFacts) -> list[MemoryPlan]:
    if isinstance(config, SFTConfig):
        return [training_memory(facts, config.train, strategy) for strategy in ("single", "ddp")]
    return [inference_memory(facts, strategy) for strategy in ("single", "ddp")]


def _check_data(config: RunConfig) -> DataCheck:
    splits = [split for split in needed_splits(config) if getattr(config.data, split) is not None]
    prompts_only = isinstance(config, GenerateConfig)
    check = check_data(config.data, splits, prompts_only=prompts_only)
    return DataCheck(format_problems(config.data, splits, prompts_only) + check.problems, check.sources)


def _run_folder_problems(config: RunConfig, batch: BatchPlan | None, resume: bool) -> list[Problem]:
    run = RunFolder(Path(config.runs_dir) / config.name)
    try:
        state = state_of(run, config, batch)
    except ScaleupError as error:
        return error.problems
    except OSError as error:
        return [Problem("runs_dir/name", f"cannot be read: {error}", "choose another")]
    if state != "unfinished" or resume:
        return []
    remedy = "continue it with --resume, or choose another name"
    return [Problem(f"runs_dir/name ({run.path})", "holds this very run, unfinished", remedy)]
