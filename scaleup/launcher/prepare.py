"""Plan -> a run folder that any node can start from: config.yaml, plan.json and a launch file a group."""

from __future__ import annotations

from scaleup.artifacts.bridge_file import new_bridge
from scaleup.artifacts.files import write_text
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import dump
from scaleup.config.schema import RunConfig
from scaleup.launcher.accelerate_file import accelerate_yaml
from scaleup.plan.types import Plan


def prepare_run(run: RunFolder, config: RunConfig, plan: Plan) -> None:
    """Write the run folder, or bring that of an unfinished run up to date."""
    run.path.mkdir(parents=True, exist_ok=True)
    write_text(run.config_file, dump(config))  # first: it is what makes the folder this run's
    plan.save(run.plan_file)
    run.resumable_file.unlink(missing_ok=True)
    (run.path / "launch").mkdir(exist_ok=True)
    for group in plan.groups:
        write_text(run.launch_file(group.name), accelerate_yaml(group))
    renew_bridge(run, plan)


def renew_bridge(run: RunFolder, plan: Plan) -> None:
    """Where the run's groups meet from now on, if there are several."""
    if plan.bridge is not None:
        new_bridge(plan.bridge.address, plan.bridge.port).save(run.bridge_file)
