"""Loaded config -> a run, from the first check to the exit code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import Loaded
from scaleup.errors import ScaleupError
from scaleup.launcher.granted import granted_problems
from scaleup.launcher.meeting import port_problems
from scaleup.launcher.prepare import prepare_run, written
from scaleup.launcher.processes import end_leftovers
from scaleup.launcher.refusal import refusal_told
from scaleup.launcher.restarts import check_node_rank, join_run, lead_run
from scaleup.launcher.show import (
    show_card,
    show_evaluation,
    show_export,
    show_generations,
    show_prune,
    show_quantization,
    show_training,
)
from scaleup.plan.cluster import nodes_of
from scaleup.plan.resolve import resolve
from scaleup.plan.resume import state_of

SHOW: dict[str, Callable[[Console, RunFolder], None]] = {
    "sft": show_training,
    "reward": show_training,
    "ppo": show_training,
    "prune": show_prune,
    "distill": show_training,
    "quantize": show_quantization,
    "export": show_export,
    "card": show_card,
    "evaluate": show_evaluation,
    "generate": show_generations,
}


def start(loaded: Loaded, console: Console, resume: bool = False) -> int:
    """Check, plan, prepare and run, on the first node. The exit code. Raises ScaleupError for the user's mistakes, of
    which nodes that wait for this one are told."""
    with refusal_told(loaded.config):
        return _start(loaded, console, resume)


def _start(loaded: Loaded, console: Console, resume: bool) -> int:
    config, plan = resolve(loaded, resume=resume, peaks=False)
    if problems := [*granted_problems(plan, os.environ), *port_problems(config)]:
        raise ScaleupError(problems)
    run = RunFolder(Path(plan.run_folder))
    with run.locked():
        end_leftovers(run.path, None, console)
        if state_of(run, config, plan.batch) == "finished":
            console.print(f"{run.path} has finished already; nothing to do", highlight=False)
        else:
            for note in plan.remarks:
                console.print(f"note: {note}", highlight=False)
            with written(run):
                prepare_run(run, config, plan)
            code = lead_run(run, plan, console, config.parallel.max_restarts)
            if code:
                return code
    SHOW[config.stage](console, run)
    return 0


def join(loaded: Loaded, console: Console, node_rank: int) -> int:
    """A further node's part of the same command, which the first node checks, plans and prepares. The exit code.

    Raises ScaleupError for a config that is none, for what the first node is refused, and when that does not come."""
    config = loaded.config
    if loaded.problems or config is None:
        raise ScaleupError(loaded.problems)
    check_node_rank(node_rank, nodes_of(config))
    run = RunFolder(Path(config.runs_dir) / config.name)
    with run.locked(node_rank):
        if run.manifest_file.is_file():
            console.print(f"{run.path} has finished already; nothing to do", highlight=False)
            return 0
        return join_run(run, console, node_rank, config.parallel.timeout_seconds)
