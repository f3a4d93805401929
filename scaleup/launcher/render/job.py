"""This module holds what every target is rendered from, and quotes values in what is rendered. Nothing else quotes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scaleup.config.cluster import ClusterConfig
from scaleup.config.load import dump
from scaleup.config.run import RunConfig
from scaleup.plan.cluster import Granted, granted, granted_to_reward, nodes_of

Files = dict[str, str]
"""Maps a name within the job's folder -> the file's text."""


@dataclass(frozen=True)
class Job:
    """Stands for one run, or the points of a sweep, which differ in nothing that a scheduler sees."""

    name: str
    folder: Path
    """Is the absolute path where the rendered files lie when the job begins."""
    configs: tuple[RunConfig, ...]
    """Holds complete configs, one a run."""
    is_sweep: bool = False
    max_parallel: int | None = None
    """Bounds how many of a sweep's runs there are at a time."""

    @property
    def config(self) -> RunConfig:
        return self.configs[0]

    @property
    def cluster(self) -> ClusterConfig:
        return self.config.cluster or ClusterConfig()

    @property
    def num_nodes(self) -> int:
        return nodes_of(self.config)

    @property
    def node(self) -> Granted:
        return granted(self.config, self.cluster)

    @property
    def reward_node(self) -> Granted | None:
        """Return what the reward group's node has, where it is of another kind."""
        return granted_to_reward(self.config, self.cluster)

    def config_name(self, number: int) -> str:
        return f"config-{number}.yaml" if self.is_sweep else "config.yaml"

    @property
    def config_files(self) -> Files:
        """Return what is run, as it was when the job was made: nobody edits these."""
        return {self.config_name(number): dump(config) for number, config in enumerate(self.configs)}


def words(values: Iterable[object]) -> str:
    """Return a command in which each value is one word, whatever it holds."""
    return " ".join(shlex.quote(str(value)) for value in values)


def exports(environment: Mapping[str, str]) -> list[str]:
    """Return a shell's lines that export the variables."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def sbatch_path(path: object) -> str:
    """Return a path as sbatch reads it from an #SBATCH line: in quotes, and with no pattern like %j in it. A backslash
    would keep the patterns beside it from being read, so there may be none."""
    text = str(path).replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'
