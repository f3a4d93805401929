"""Plan -> a run folder that any node can start from: config.yaml, plan.json and a launch file a group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from scaleup.artifacts.bridge_file import new_bridge
from scaleup.artifacts.files import write_text
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import dump
from scaleup.config.schema import RunConfig
from scaleup.errors import ScaleupError
from scaleup.launcher.accelerate_file import accelerate_yaml
from scaleup.launcher.addresses import own_address
from scaleup.launcher.meeting import Meeting
from scaleup.plan.types import Plan


@contextmanager
def written(run: RunFolder) -> Iterator[None]:
    """Around what must be written before anything starts. Raises ScaleupError when it cannot be."""
    try:
        yield
    except OSError as error:
        what = f"{run.path} cannot be written: {error.strerror or error}"
        raise ScaleupError.of("runs_dir", what, "make room there, or name another folder") from error


def prepare_run(run: RunFolder, config: RunConfig, plan: Plan) -> None:
    """Write the run folder, or bring that of an unfinished run up to date."""
    run.path.mkdir(parents=True, exist_ok=True)
    write_text(run.config_file, dump(config))  # first: it is what makes the folder this run's
    plan.save(run.plan_file)
    run.resumable_file.unlink(missing_ok=True)
    (run.path / "launch").mkdir(exist_ok=True)
    for group in plan.groups:
        write_text(run.launch_file(group.name), accelerate_yaml(group))
    renew_bridge(run, plan, None)


def renew_bridge(run: RunFolder, plan: Plan, meeting: Meeting | None) -> None:
    """Where the run's groups meet from now on, if there are several."""
    if plan.bridge is not None:
        address = plan.bridge.address or (meeting.address if meeting else own_address(plan.groups[0].interface))
        new_bridge(address, plan.bridge.port).save(run.bridge_file)
