"""Plan -> a run folder that any node can start from: config.yaml, plan.json and a launch file a group."""

from __future__ import annotations

from pathlib import Path

from scaleup.artifacts.files import write_text
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import save
from scaleup.config.schema import RunConfig
from scaleup.errors import ScaleupError
from scaleup.launcher.accelerate_file import accelerate_yaml
from scaleup.plan.types import Plan


def prepare_run(config: RunConfig, plan: Plan, resume: bool) -> tuple[RunFolder, str]:
    """The run folder and its state before (`absent`, `unfinished`, `finished`). A finished run is left as it is.

    Raises ScaleupError when an unfinished run is there and nobody asked to resume it."""
    run = RunFolder(Path(plan.run_folder))
    state = run.state(config)
    if state == "finished":
        return run, state
    if state == "unfinished" and not resume:
        raise ScaleupError.of(
            f"runs_dir/name ({run.path})",
            "holds this very run, unfinished",
            "continue it with --resume, or choose another name",
        )
    (run.path / "launch").mkdir(parents=True, exist_ok=True)
    run.resumable_file.unlink(missing_ok=True)
    save(config, run.config_file)
    plan.save(run.plan_file)
    for group in plan.groups:
        write_text(run.launch_file(group.name), accelerate_yaml(group))
    return run, state
