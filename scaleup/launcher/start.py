"""A loaded config goes in; the exit code of its run comes out, from the first check on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import Loaded
from scaleup.errors import Problem, ScaleupError
from scaleup.launcher.prepare import prepare_run, written
from scaleup.launcher.processes import end_leftovers
from scaleup.launcher.refusal import refusal_posted
from scaleup.launcher.rendezvous import address_problems, port_problems
from scaleup.launcher.restarts import check_node_rank, join_run, lead_run
from scaleup.plan.cluster import nodes_of
from scaleup.plan.extras import check_data_plane, strategy_problems
from scaleup.plan.resolve import resolve
from scaleup.plan.resume import rows_of, state_of
from scaleup.plan.stages import planner_of
from scaleup.plan.types import Plan
from scaleup.reports.results import show_result


def start(
    loaded: Loaded, console: Console, resume: bool = False, accepts_changes: bool = False, shows: bool = True
) -> int:
    """Check, plan, prepare and run, on the first node; `accepts_changes`: go on although rows or models have changed;
    `shows`: print what it came to. Return the exit code.

    Raises ScaleupError for the user's mistakes, which nodes that wait for this one report too."""
    with refusal_posted(loaded.config):
        return _start(loaded, console, resume, accepts_changes, shows)


def _start(loaded: Loaded, console: Console, resume: bool, accepts_changes: bool, shows: bool) -> int:
    if accepts_changes and not resume:
        raise ScaleupError.of("--accept-changed-data", "is for a run that goes on", "add --resume, or leave it out")
    config, plan = resolve(loaded, resume=resume, peaks=False)
    chosen = plan.groups[0].strategy  # by `auto`, perhaps
    problems = [*granted_problems(plan, os.environ), *port_problems(config)]
    problems += [*address_problems(config), *strategy_problems(chosen)]
    if problems:
        raise ScaleupError(problems)
    run = RunFolder(Path(plan.run_folder))
    with run.locked():
        end_leftovers(run.path, None, console)
        if (state := state_of(run, config, plan.batch)) == "finished":
            console.print(f"{run.path} has finished already; nothing to do", highlight=False)
        else:
            data, notes = rows_of(
                run, config, state, accepts_changes, partial(console.print, highlight=False, markup=False)
            )
            for note in [*plan.remarks, *notes]:
                console.print(f"note: {note}", highlight=False)
            with written(run):
                prepare_run(run, config, plan, data)
            code = lead_run(run, plan, console, config.parallel.max_restarts)
            if code:
                return code
    if shows:
        show_result(console, run, planner_of(config).shows)
    return 0


def granted_problems(plan: Plan, environment: Mapping[str, str]) -> Iterator[Problem]:
    """Refuse a run of more nodes than its Slurm job has: the others would never come."""
    granted = _slurm_nodes(environment)
    if granted is not None and plan.num_nodes > granted:
        what = f"the run needs {plan.num_nodes} nodes, and job {environment['SLURM_JOB_ID']} was granted {granted}"
        yield Problem("parallel.num_nodes", what, f"ask for --nodes={plan.num_nodes}, or use fewer")


def _slurm_nodes(environment: Mapping[str, str]) -> int | None:
    """Return the nodes of all components of a heterogeneous job together; None outside of a job."""
    if not environment.get("SLURM_JOB_ID"):
        return None
    size = environment.get("SLURM_HET_SIZE", "")  # some sites export Slurm's variables empty
    components = int(size) if size.isdecimal() else 0
    names = [f"SLURM_JOB_NUM_NODES_HET_GROUP_{number}" for number in range(components)] or ["SLURM_JOB_NUM_NODES"]
    counts = [environment.get(name, "") for name in names]
    return sum(map(int, counts)) if all(count.isdecimal() for count in counts) else None


def join(loaded: Loaded, console: Console, node_rank: int) -> int:
    """Run a further node's part of the same command, which the first node checks, plans and prepares. Return the exit
    code.

    Raises ScaleupError if the config is invalid, if node 0 refuses the run, or if node 0 does not appear."""
    config = loaded.config
    if loaded.problems or config is None:
        raise ScaleupError(loaded.problems)
    check_data_plane()
    check_node_rank(node_rank, nodes_of(config))
    run = RunFolder(Path(config.runs_dir) / config.name)
    with run.locked(node_rank):
        if run.manifest_file.is_file():
            console.print(f"{run.path} has finished already; nothing to do", highlight=False)
            return 0
        return join_run(run, console, node_rank, config.parallel.timeout_seconds)
