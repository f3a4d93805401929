"""Loaded config -> a run, from the first check to the exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import Loaded
from scaleup.errors import ScaleupError
from scaleup.launcher.prepare import prepare_run
from scaleup.launcher.processes import end_leftovers
from scaleup.launcher.restarts import run_node
from scaleup.launcher.show import (
    show_card,
    show_evaluation,
    show_export,
    show_generations,
    show_prune,
    show_training,
)
from scaleup.plan.resolve import resolve
from scaleup.plan.resume import state_of
from scaleup.plan.types import Plan

SHOW: dict[str, Callable[[Console, RunFolder], None]] = {
    "sft": show_training,
    "reward": show_training,
    "ppo": show_training,
    "distill": show_training,
    "prune": show_prune,
    "export": show_export,
    "card": show_card,
    "evaluate": show_evaluation,
    "generate": show_generations,
}


def start(loaded: Loaded, console: Console, resume: bool = False) -> int:
    """Check, plan, prepare and run, on the first node. The exit code. Raises ScaleupError for the user's mistakes."""
    config, plan = resolve(loaded, resume=resume, peaks=False)
    run = RunFolder(Path(plan.run_folder))
    with run.locked():
        end_leftovers(run.path, None, console)
        if state_of(run, config, plan.batch) == "finished":
            console.print(f"{run.path} has finished already; nothing to do", highlight=False)
        else:
            for note in plan.remarks:
                console.print(f"note: {note}", highlight=False)
            prepare_run(run, config, plan)
            code = run_node(run, plan, console, config.parallel.max_restarts)
            if code:
                return code
    SHOW[config.stage](console, run)
    return 0


def join(path: Path, console: Console, node_rank: int) -> int:
    """Start a further node's part of a run that the first node has prepared."""
    run = RunFolder(path.absolute())
    try:
        plan = Plan.read(run.plan_file)
    except (OSError, ValueError):
        raise ScaleupError.of(str(path), "is no prepared run folder", "start `scaleup run` on the first node") from None
    last = plan.groups[0].num_nodes - 1
    if node_rank > last:
        what = f"the run has no node {node_rank}" if last else "the run has one node, and `scaleup run` is it"
        raise ScaleupError.of("--node-rank", what, f"use 1 to {last}" if last else "set parallel.num_nodes")
    with run.locked(node_rank):
        return run_node(run, plan, console, node_rank=node_rank)
