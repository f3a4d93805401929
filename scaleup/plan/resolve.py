"""Config + machine -> Plan, or every refusal at once. Starts no worker and loads no weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import Loaded
from scaleup.config.schema import ModelConfig, RunConfig, SourceConfig
from scaleup.config.stages import (
    CardConfig,
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    PPOConfig,
    PruneConfig,
    RewardConfig,
    SupervisedConfig,
)
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.adapters import rank_schedule_problems
from scaleup.plan.batches import batch_plan
from scaleup.plan.cached_teacher import top_k_problems
from scaleup.plan.card import asked_variants, facts_of_variants, variant_problems
from scaleup.plan.compat import untested_notes
from scaleup.plan.compute import Rate, compute_plan
from scaleup.plan.describe import describe_models
from scaleup.plan.distill import (
    TEACHER,
    distillation_memory,
    distillation_models,
    distilled_facts,
    hidden_problems,
    pair_problems,
)
from scaleup.plan.facts import AskedModel, ModelFacts
from scaleup.plan.groups import bridge_of, groups_of
from scaleup.plan.machine import Machine, this_machine
from scaleup.plan.memory import inference_memory, serving_memory
from scaleup.plan.peak import micro_batch_of, predicted_memory
from scaleup.plan.prune import calibration_problems, size_problems
from scaleup.plan.recovery import learner_of, recovery_problems
from scaleup.plan.resume import state_of
from scaleup.plan.rollouts import policy_facts, policy_memory, rollout_plan
from scaleup.plan.rules import REWARD_MODEL, config_problems, facts_problems, needed_splits, prompt_splits
from scaleup.plan.saved_adapters import base_problems
from scaleup.plan.strategy import available, share_of
from scaleup.plan.toxicity import TOXICITY_MODEL, toxicity_source
from scaleup.plan.types import BatchPlan, GroupPlan, MemoryPlan, Plan
from scaleup.records.check import DataCheck, check_data
from scaleup.records.examples import format_problems
from scaleup.records.preferences import reasons


def resolve(
    loaded: Loaded,
    machine: Machine | None = None,
    check_run_folder: bool = True,
    resume: bool = False,
    rate: Rate | None = None,
    peaks: bool = True,
) -> tuple[RunConfig, Plan]:
    """The config and its plan; without `peaks` the memory's are left out, which take seconds, unless `auto` needs them.

    Raises ScaleupError with every mistake of the config, the data and the run folder, which may hold this very run
    unfinished only if it is to `resume`."""
    machine = machine or this_machine()
    problems = list(loaded.problems)
    if loaded.config is None:
        raise ScaleupError(problems)
    config = loaded.config
    known = {problem.where for problem in problems}
    data_check = _check_data(config)
    learner = learner_of(config)
    found = config_problems(config, machine) + data_check.problems + _hold_out_problems(config, data_check)
    found += calibration_problems(config, data_check)
    found += recovery_problems(config, [] if learner is config else config_problems(learner, machine))
    found = list(dict.fromkeys(found))
    problems += [problem for problem in found if not _is_within(problem.where, known)]
    if check_run_folder and not known & {"name", "runs_dir"}:
        batch = batch_plan(learner, data_check) if isinstance(learner, SupervisedConfig) and not problems else None
        problems += _run_folder_problems(config, batch, resume)
    if problems:
        raise ScaleupError(problems)
    if isinstance(config, SupervisedConfig) and config.train.max_steps is None:  # else the config itself has told
        problems += rank_schedule_problems(config, batch_plan(config, data_check).num_steps)
    if problems:
        raise ScaleupError(problems)
    traces = peaks or config.parallel.strategy == "auto"
    micro = micro_batch_of(learner) if traces and isinstance(learner, SupervisedConfig) else None
    facts = describe_models(models_of(config), micro)
    problems = [problem for where, found in facts.items() for problem in facts_problems(config, found, where)]
    if isinstance(config, CardConfig):
        for where in asked_variants(config):
            problems += variant_problems(config, facts[where], facts["model"], where)
    problems += base_problems(config, facts["model"]) + size_problems(config, facts["model"])
    if isinstance(config, DistillConfig):
        problems += pair_problems(config, facts["model"], facts[TEACHER])
    if isinstance(config, PruneConfig) and isinstance(learner, DistillConfig):
        facts |= {TEACHER: facts["model"]}
        found = [*hidden_problems(learner, facts["model"], facts["model"])]  # in all else it is its own equal
        found += top_k_problems(learner, facts["model"])
        problems += recovery_problems(config, found)
    if problems:
        raise ScaleupError(problems)
    plan = make_plan(learner, machine, facts, data_check, rate or Rate())
    return config, plan if learner is config else plan.model_copy(update={"stage": config.stage})


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
    """What to ask about, by config key."""
    model = config.model
    if isinstance(config, RewardConfig):
        model = model.model_copy(update={"task": "sequence_classification"})
    models = {"model": model}
    if isinstance(config, EvaluateConfig) and config.baseline is not None:
        models["baseline"] = config.baseline
    made = {"adapter": getattr(config, "adapter", None), "quantization": getattr(config, "quantization", None)}
    made["prune"] = config.prune if isinstance(config, PruneConfig) else None
    made["takes_encoders"] = isinstance(config, ExportConfig) and config.export.format == "onnx"
    asked: dict[str, ModelConfig] = {where: AskedModel(**model.model_dump(), **made) for where, model in models.items()}
    if isinstance(config, DistillConfig):
        asked |= distillation_models(config, asked["model"])
    if isinstance(config, PPOConfig) and config.reward.model is not None:
        scorer = config.reward.model.model_copy(update={"task": "sequence_classification"})
        asked[REWARD_MODEL] = AskedModel(**scorer.model_dump(), quantization=config.reward.quantization)
    if (source := toxicity_source(config)) is not None and source.model is not None:
        asked[TOXICITY_MODEL] = source.model.model_copy(update={"task": "sequence_classification"})
    if isinstance(config, CardConfig):
        asked |= asked_variants(config)
    return asked


def make_plan(config: RunConfig, machine: Machine, facts: dict[str, ModelFacts], data: DataCheck, rate: Rate) -> Plan:
    batch, compute, notes = None, None, []
    if isinstance(config, DistillConfig) and not facts["model"].labels:
        facts = facts | {"model": facts["model"].model_copy(update={"new_labels": facts[TEACHER].labels})}
    if isinstance(config, SupervisedConfig):
        batch = batch_plan(config, data)
        compute = compute_plan(config, facts["model"], batch, rate, facts.get(TEACHER))
        notes = _mixture_notes(config, batch, data) + _left_out_notes(data) + _footprint_notes(config, facts["model"])
    memory = _memory(config, facts)
    trained = _trained(config, facts)
    groups = groups_of(config, machine, trained, _strategy_before(config, batch))
    notes += untested_notes(config, groups[0].strategy)
    share = share_of(config, machine, groups[0].device)
    return Plan(
        stage=config.stage,
        name=config.name,
        run_folder=str(Path(config.runs_dir) / config.name),
        groups=groups,
        model=facts["model"],
        baseline=facts.get("baseline"),
        teacher=facts.get(TEACHER),
        reward=facts.get(REWARD_MODEL),
        toxicity=facts.get(TOXICITY_MODEL),
        variants=facts_of_variants(config, facts) if isinstance(config, CardConfig) else {},
        batch=batch,
        rollouts=rollout_plan(config, data) if isinstance(config, PPOConfig) else None,
        bridge=bridge_of(config, groups[0]),
        memory=memory,
        reward_memory=_reward_memory(config, groups, facts),
        device_memory=share.memory,
        fitting=None if share.memory is None else [row.strategy for row in memory if share.fits(row)],
        compute=compute,
        notes=notes,
    )


def _trained(config: RunConfig, facts: dict[str, ModelFacts]) -> ModelFacts:
    """Of what the first group's engine wraps."""
    if isinstance(config, PPOConfig):
        return policy_facts(config, facts["model"])
    if isinstance(config, DistillConfig):
        return distilled_facts(config, facts["model"], facts[TEACHER])
    return facts["model"]


def _strategy_before(config: RunConfig, batch: BatchPlan | None) -> str | None:
    """What this very run used on as many processes, if it has begun: `auto` stays with it, whatever memory there is
    now."""
    run = RunFolder(Path(config.runs_dir) / config.name)
    try:
        if config.parallel.strategy != "auto" or state_of(run, config, batch) == "absent":
            return None
        group = Plan.read(run.plan_file).group("policy")
    except (ScaleupError, OSError, ValueError):
        return None
    return group.strategy if group.num_processes == config.parallel.num_processes else None


def _mixture_notes(config: SupervisedConfig, batch: BatchPlan, data: DataCheck) -> list[str]:
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


def _left_out_notes(data: DataCheck) -> list[str]:
    found = [(summary.path, list(reasons(summary.left_out))) for each in data.sources.values() for summary in each]
    return [f"{path}: pairs left out: {', '.join(why)}" for path, why in found if why]


def _footprint_notes(config: RunConfig, facts: ModelFacts) -> list[str]:
    if isinstance(config, DistillConfig) and config.distill.mode == "on_policy":
        return ["activations are not in the memory table: those of answers and of TRL's loss are not predicted"]
    if facts.untraced is None:
        return []
    return [f"activations are not in the memory table: {facts.architecture} cannot be traced ({facts.untraced})"]


def _memory(config: RunConfig, models: dict[str, ModelFacts]) -> list[MemoryPlan]:
    """Of every strategy that the run could use."""
    names, count, facts = available(config), config.parallel.num_processes, models["model"]
    if isinstance(config, DistillConfig):
        return [distillation_memory(config, facts, models[TEACHER], name) for name in names]
    if isinstance(config, SupervisedConfig):
        return [predicted_memory(facts, config, name, count) for name in names]
    if isinstance(config, PPOConfig):
        return [policy_memory(config, facts, name) for name in names]
    quantization = getattr(config, "quantization", None)
    return [inference_memory(facts, name, quantization) for name in names]


def _reward_memory(config: RunConfig, groups: list[GroupPlan], facts: dict[str, ModelFacts]) -> MemoryPlan | None:
    if not isinstance(config, PPOConfig) or len(groups) == 1:
        return None
    return serving_memory(facts[REWARD_MODEL], groups[1], config.reward.quantization)


def _check_data(config: RunConfig) -> DataCheck:
    splits = [split for split in needed_splits(config) if getattr(config.data, split) is not None]
    prompts_only = prompt_splits(config)
    most = config.export.num_rows if isinstance(config, ExportConfig) else None
    check = check_data(config.data, splits, most, prompts_only)
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
