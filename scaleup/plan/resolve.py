"""A config and a machine go in; a plan comes out, or every refusal at once. No worker is started and no weights are
loaded.

The parts that differ between stages are the stage's planner's (`plan/stages/base.py`), called in the order of this
file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import Loaded
from scaleup.config.run import RunConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.compute import Rate
from scaleup.plan.describe import Described, describe_models
from scaleup.plan.facts import ModelRequest
from scaleup.plan.gathering import generation_settings, with_gathering
from scaleup.plan.generators import generator_memory
from scaleup.plan.groups import bridges_of, device_of, groups_of
from scaleup.plan.known_rows import known_check
from scaleup.plan.loading import host_problems, loading_plans
from scaleup.plan.machine import Machine, this_machine
from scaleup.plan.memory import checkpoint_copy, serving_memory
from scaleup.plan.resume import state_of
from scaleup.plan.saved_adapters import base_problems
from scaleup.plan.scorers import measured_by
from scaleup.plan.stages import planner_of
from scaleup.plan.stages.base import Facts, targets_of
from scaleup.plan.strategy import NothingFits, available, budget_of
from scaleup.plan.types import BatchPlan, Plan
from scaleup.records.chat_rules import chat_problems
from scaleup.records.check import DataCheck, class_notes
from scaleup.records.examples import format_problems


@dataclass(frozen=True)
class Sources:
    """Holds who tells a plan of the rows and of the models."""

    check: Callable[[RunConfig], DataCheck]
    describe: Callable[..., Described]


def resolve(
    loaded: Loaded,
    machine: Machine | None = None,
    check_run_folder: bool = True,
    resume: bool = False,
    rate: Rate | None = None,
    peaks: bool = True,
    sources: Sources | None = None,
) -> tuple[RunConfig, Plan]:
    """Returns the config and its plan. Without `peaks`, the peaks of memory, which take seconds, are left out unless
    `auto` needs them. `sources` are for a caller that resolves many configs of the same rows.

    Raises ScaleupError with every mistake of the config, the data and the run folder, which may hold this very run
    unfinished only if it is to `resume`."""
    machine, sources = machine or this_machine(), sources or Sources(checked_rows, describe_models)
    if loaded.config is None:
        raise ScaleupError(loaded.problems)
    config, planner = loaded.config, planner_of(loaded.config)
    data = sources.check(config)
    learner = planner.trains_as(config)
    problems = [*loaded.problems, *_new_problems(loaded, machine, data)]
    batch = None if problems else planner.batch(config, data)
    if check_run_folder and not {problem.where for problem in loaded.problems} & {"name", "runs_dir"}:
        problems += _run_folder_problems(config, batch, resume)
    _refuse(problems)
    if batch is not None:
        _refuse(planner.batch_problems(config, batch))

    traces = peaks or config.parallel.strategy == "auto"
    micro_batch = planner_of(learner).micro_batch(learner) if traces else None
    described = sources.describe(models_of(config, data), micro_batch, planner.readers(config))
    facts: Facts = described.facts
    problems = [problem for where, each in facts.items() for problem in planner.all_facts_problems(config, each, where)]
    problems += planner.label_problems(config, facts, data)
    _refuse([*problems, *base_problems(config, facts["model"]), *planner.model_problems(config, facts)])
    _refuse(Problem(f"{where}.path", *each.flaw) for where, each in facts.items() if each.flaw is not None)
    facts = planner.complete(config, facts)
    plan = make_plan(learner, machine, facts, data, rate or Rate())
    if problems := list(host_problems(plan.groups, plan.loading, machine.memory)):
        raise NothingFits(problems)
    return config, plan.model_copy(update={"stage": config.stage, "notes": [*plan.notes, *described.notes]})


def _refuse(problems: Collection[Problem] | Iterator[Problem]) -> None:
    if problems := list(problems):
        raise ScaleupError(problems)


def _new_problems(loaded: Loaded, machine: Machine, data: DataCheck) -> Iterator[Problem]:
    """Yields the problems beside those of loading; a key that loading refused is not reported again."""
    config = loaded.config
    assert config is not None
    problems = planner_of(config).config_problems(config, machine) + data.problems + _hold_out_problems(config, data)
    problems += planner_of(config).data_problems(config, machine, data)
    known = {problem.where for problem in loaded.problems}
    yield from (each for each in dict.fromkeys(problems) if not _is_within(each.where, known))


def _is_within(where: str, keys: Collection[str]) -> bool:
    return any(where == key or where.startswith(f"{key}.") for key in keys)


def checked_rows(config: RunConfig) -> DataCheck:
    """Returns what is known of the rows that a run reads, and their mistakes."""
    planner = planner_of(config)
    rows = planner.splits(config)
    splits = [split for split in rows if getattr(config.data, split) is not None]
    prompts_only = [split for split, needs in rows.items() if needs == "prompts"]
    check = known_check(config.data, splits, planner.max_rows(config), prompts_only)
    mistakes = [
        *format_problems(config.data, splits, prompts_only),
        *chat_problems(config.data, splits, prompts_only),
    ]
    return replace(check, problems=mistakes + check.problems)


def _hold_out_problems(config: RunConfig, data: DataCheck) -> list[Problem]:
    if config.data.validation_fraction is None:
        return []
    return [
        Problem("data.validation_fraction", f"{summary.path} has one row, of which none can be held out", "add rows")
        for summary in data.sources.get("train", [])
        if summary.rows == 1
    ]


def models_of(config: RunConfig, data: DataCheck) -> dict[str, ModelRequest]:
    """Returns the models whose facts are needed, by config key."""
    planner = planner_of(config)
    models = planner.told_by_rows(config, planner.models(config), data)
    measured = planner.measured(config)
    for key, scorer in (measured_by(measured) if measured else {}).items():
        classifier = scorer.model.model_copy(update={"task": "sequence_classification"})
        models = models | {key: ModelRequest(**classifier.model_dump())}
    return models


def make_plan(config: RunConfig, machine: Machine, facts: Facts, data: DataCheck, rate: Rate) -> Plan:
    """Returns the plan of a config that has no problems.

    Raises ScaleupError if no strategy fits."""
    planner = planner_of(config)
    facts = planner.complete(config, facts)
    batch = planner.batch(config, data)
    held = [planner.memory(config, facts, name) for name in available(config)]
    budget = budget_of(config, machine, device_of(config.parallel, machine))
    memory = [with_gathering(config, row, budget) for row in held]
    groups = groups_of(config, machine, memory, _strategy_before(config, batch))
    own = next((row for row in held if row.strategy == groups[0].strategy), None)
    groups[0] = groups[0].model_copy(update=generation_settings(config, own, budget))
    serving = {
        reward.group: serving_memory(facts[f"{reward.key}.model"], group, reward.source.quantization)
        for reward, group in zip(config.reward_groups, groups[1:], strict=False)
    }
    serving |= {group.name: generator_memory(group, facts["model"]) for group in groups if group.generator}
    data_notes = [*data.notes, *(note for each in targets_of(facts) for note in class_notes(data, each))]
    return Plan(
        stage=config.stage,
        name=config.name,
        run_folder=str(Path(config.runs_dir) / config.name),
        groups=groups,
        model=facts["model"],
        models={where: each for where, each in facts.items() if where != "model"},
        batch=batch,
        rollouts=planner.rollouts(config, data),
        bridges=bridges_of(config, groups[0]),
        memory=memory,
        serving_memory=serving,
        loading=loading_plans(config, groups, memory, serving, facts),
        device_memory=budget.memory,
        fitting=None if budget.memory is None else [row.strategy for row in memory if budget.fits(row)],
        checkpoint_copy=checkpoint_copy(config, planner.trained(config, facts), groups[0].strategy, machine.memory),
        compute=None if batch is None else planner.compute(config, facts, batch, rate),
        notes=[
            *data_notes,
            *planner.notes(config, facts, batch, data),
            *planner.untested_notes(config, groups[0].strategy),
        ],
    )


def _strategy_before(config: RunConfig, batch: BatchPlan | None) -> str | None:
    """Returns what this very run used on as many processes, if it has begun: `auto` stays with it, whatever memory
    there is now."""
    run = RunFolder(Path(config.runs_dir) / config.name)
    try:
        if config.parallel.strategy != "auto" or state_of(run, config, batch) == "absent":
            return None
        group = Plan.read(run.plan_file).group("policy")
    except (ScaleupError, OSError):
        return None
    return group.strategy if group.num_processes == config.parallel.num_processes else None


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
