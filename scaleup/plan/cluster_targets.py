"""A run's job goes in; what cannot work on Slurm or on Kubernetes comes out, whatever its nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaleup.config.cluster import ClusterConfig, NodeResources
from scaleup.config.run import RunConfig
from scaleup.errors import Problem
from scaleup.records.format_rules import SPLITS

GPU_GRES = re.compile(r"gpu(?::[^:,=]+)??(?::(\d+))?")
"""Matches one kind of GPUs, of a type or not; other requests are not looked into."""
LONGEST_SIGNAL = 65535
"""This is the limit in seconds that sbatch's documentation of --signal gives."""
KUBERNETES_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
LONGEST_NAME = 40
"""Leaves, of the 63 characters of a pod's host name, room for what Kubernetes adds: the group, an index and what makes
it unique."""
NAMES = ("path", "tokenizer", "function", "chat_template", "api_key_file")
"""Lists the keys that name a folder or a file, or something else: a hub's name, `package:...`, `builtin:...`."""


def slurm_problems(config: RunConfig, cluster: ClusterConfig, is_sweep: bool) -> Iterator[Problem]:
    if is_sweep and cluster.reward is not None:
        what = "a job with two kinds of nodes cannot be an array"
        yield Problem(
            "cluster.reward", what, "leave it out, so that all nodes are alike, or submit the points one by one"
        )
    if cluster.slurm is not None and cluster.slurm.gres:
        yield from _gres_problems("cluster", cluster, "cluster.slurm.gres", cluster.slurm.gres)
    if cluster.reward is not None and cluster.reward.gres:
        yield from _gres_problems("cluster.reward", cluster.reward, "cluster.reward.gres", cluster.reward.gres)
    if cluster.signal_seconds > LONGEST_SIGNAL:
        yield Problem("cluster.signal_seconds", f"Slurm tells a job {LONGEST_SIGNAL} s ahead at most", "use fewer")
    if cluster.container is not None:
        read = [(key, str(path)) for key, path in local_paths(config)]
        for where, place in (("cluster.workdir", cluster.workdir), ("runs_dir", config.runs_dir), *read):
            if re.search("[,:]", place):
                yield Problem(where, f"{place!r} cannot be mounted in a container", "use a path without , and :")


def _gres_problems(key: str, node: NodeResources, where: str, gres: str) -> Iterator[Problem]:
    """Yields a `gres` request for another number of GPUs than the run uses."""
    gpus, match = node.gpus_per_node, GPU_GRES.fullmatch(gres)
    if gpus is None:
        yield Problem(f"{key}.gpus_per_node", f"is needed beside {where}", "say how many GPUs these are")
    elif match and int(match[1] or 1) != gpus:
        what = f"{gres} is {match[1] or 1} GPU(s) a node, and {key}.gpus_per_node {gpus}"
        yield Problem(where, what, "use the same number")


def torchrun_problems(config: RunConfig, cluster: ClusterConfig, is_sweep: bool) -> Iterator[Problem]:
    if cluster.container is not None:
        what = "the script of this target starts no container"
        yield Problem("cluster.container", what, "leave it out, and start the script in one")


def kubernetes_problems(config: RunConfig, cluster: ClusterConfig, is_sweep: bool) -> Iterator[Problem]:
    kubernetes = cluster.kubernetes
    if kubernetes is None:
        yield Problem("cluster.kubernetes", "is missing", "give at least its volume_claim")
        return
    if cluster.container is None:
        yield Problem("cluster.container", "is missing", "name the image that the pods run")
    elif cluster.container.mounts:
        yield Problem("cluster.container.mounts", "are Slurm's; pods have one volume", "leave them out")
    if not KUBERNETES_NAME.fullmatch(config.name) or len(config.name) > LONGEST_NAME:
        what = f"{config.name!r} cannot be the name of a Kubernetes job"
        yield Problem("name", what, f"use up to {LONGEST_NAME} lower-case letters, digits and hyphens")
    mounted = kubernetes.mount_path or cluster.workdir
    if not Path(mounted).is_absolute():
        yield Problem("cluster.kubernetes.mount_path", "is no absolute path", "say where the pods have the volume")
    elif not Path(config.runs_dir).is_relative_to(mounted):
        what = f"{config.runs_dir} is not on the volume, which is mounted at {mounted}"
        yield Problem("runs_dir", what, "use a folder in it: the nodes of a run share its run folder")
    for key, path in local_paths(config):
        if Path(mounted).is_absolute() and not path.is_relative_to(mounted):
            what = f"{path} is not on the volume, which is mounted at {mounted}"
            yield Problem(key, what, "bring it there: pods have no other file of this machine")
    if cluster.reward is not None and kubernetes.kind != "jobset":
        what = f"a {kubernetes.kind} has nodes of one kind"
        yield Problem("cluster.reward", what, "use cluster.kubernetes.kind: jobset, or leave it out")


def local_paths(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """Yields config key and absolute path of each existing folder and file: `data.root` where a source is relative to
    it, but not `runs_dir`, which is written."""
    values: dict[str, Any] = config.model_dump(mode="json", exclude={"cluster", "runs_dir"})
    data, adapters = values.pop("data"), values.pop("adapters", None) or {}
    sources = [source["path"] for split in SPLITS for source in data.get(split) or []]
    root = Path(config.data.root)
    relative = [Path(source) for source in sources if not Path(source).expanduser().is_absolute()]
    if any(source.suffix or (root / source).exists() for source in relative):  # else rows of a hub
        yield "data.root", root
    named = [
        *_named(data, "data"),
        *_named(values, ""),
        *((f"adapters.{name}", path) for name, path in adapters.items()),
    ]
    for key, value in named:
        file = value.rpartition(":")[0] if key.endswith(".function") else value
        if file.startswith("/") and Path(file).exists():
            yield key, Path(file)


def _named(value: Any, key: str) -> Iterator[tuple[str, str]]:
    parts = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for name, part in parts:
        here = f"{key}.{name}".lstrip(".")
        if isinstance(part, str):
            if name in NAMES:
                yield here, part
        else:
            yield from _named(part, here)
