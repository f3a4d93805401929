"""A config, its plan, the processes and the run folder go in; one thing comes out that every stage is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.timeline import Timeline
from scaleup.config.run import RunConfig
from scaleup.distributed.runtime import Runtime
from scaleup.plan.types import Plan

Config = TypeVar("Config", bound=RunConfig, covariant=True)


@dataclass(frozen=True)
class Job(Generic[Config]):
    """Stands for one run as one of its processes sees it. `Job[SFTConfig]` is a `Job[SupervisedConfig]`, as their
    configs are."""

    config: Config
    plan: Plan
    runtime: Runtime
    folder: RunFolder

    @property
    def parts(self) -> Path:
        """Return the folder in which ranks leave what they generated for one another."""
        return self.folder.path / ".parts"

    @property
    def timeline(self) -> Timeline:
        """Return what notes when this process's group did what: rank 0 notes it for the group."""
        file = self.folder.timelines / f"{self.runtime.group.name}.jsonl"
        return Timeline(file if self.runtime.is_main else None)

    def finish(self, metrics: Mapping[str, Any], num_steps: int | None = None) -> None:
        """Write the manifest, which says that the run is whole. Rank 0 alone calls it, last of all."""
        self.folder.finish(self.config.stage, self.config.name, dict(metrics), num_steps)
