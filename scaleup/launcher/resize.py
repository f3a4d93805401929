"""This module gives another size to a group that serves, also while its run goes on."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.launcher.prepare import write_launch_file
from scaleup.plan.groups import resized
from scaleup.plan.machine import this_machine
from scaleup.plan.types import GroupPlan, Plan


def resize_group(path: Path, name: str, num_processes: int, console: Console) -> None:
    """Rewrite the plan of a prepared run. An agent that has the group running sees it, and starts the group anew; a
    group that is started by hand has the size from then on.

    Raises ScaleupError for what is no such run or group, and where this machine has too few GPUs."""
    run = RunFolder(path.absolute())
    try:
        plan = Plan.read(run.plan_file)
    except (OSError, ScaleupError):
        raise ScaleupError.of(str(path), "is no prepared run folder", "name the folder of a run") from None
    serving = [group.name for group in plan.groups if group.serves]
    if name not in serving:
        what = f"the run has no group {name!r} that serves another"
        raise ScaleupError.of(
            "GROUP", what, f"it has {', '.join(serving)}" if serving else "its groups keep their size"
        )
    if run.manifest_file.is_file():
        raise ScaleupError.of(str(path), "has finished", "name a run that goes on")
    group = resized(plan.group(name), num_processes)
    _check_devices(plan, group)
    groups = [group if known.name == name else known for known in plan.groups]
    plan.model_copy(update={"groups": groups}).save(run.plan_file)
    write_launch_file(run, group)  # for a start by hand; an agent writes it again
    console.print(f"group {name} of {run.path} has {num_processes} process(es) from its next start on", highlight=False)


def _check_devices(plan: Plan, group: GroupPlan) -> None:
    """Raises ScaleupError where a group reaches into the GPUs of the next one on its node, or the node has fewer."""
    if group.device != "cuda":
        return
    beside = [other for other in plan.groups if other.device == "cuda" and other.is_on(group.first_node)]
    behind = [other.first_device for other in beside if other.first_device > group.first_device]
    has = min([*behind, this_machine().num_gpus])
    if group.first_device + group.num_processes > has:
        most = has - group.first_device
        what = f"{group.num_processes} processes need more than the {most} GPUs that are there beside other groups"
        raise ScaleupError.of("NUM_PROCESSES", what, f"use at most {max(1, most)}")
