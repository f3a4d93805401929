"""A config and what its rows are known by go in; what the run is made from comes out: data, config, code, packages,
machine, and the runs whose models it names."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from scaleup.artifacts.data_file import RunData
from scaleup.artifacts.lineage import Code, Host, Lineage, Parent, Rows, manifest_hash
from scaleup.config.run import RunConfig
from scaleup.plan.places import texts_of
from scaleup.plan.stages import planner_of
from scaleup.records.formats import local_path
from scaleup.records.remote import RemotePath

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "deepspeed", "bitsandbytes", "torchao", "vllm")
"""Names the packages that decide what comes out of a run."""
OF_THE_PLACE = {"name", "runs_dir", "cluster"}
"""Names the keys that say where a run is, and not what."""
GPUS = Path("/proc/driver/nvidia/gpus")


def lineage_of(config: RunConfig, data: RunData) -> Lineage:
    """Returns what a run of the config, started now, is made from."""
    return Lineage(
        config=config_hash(config),
        data={key: Rows.of(mark) for key, mark in data.sources.items()},
        code=Code.of_this(),
        packages=dict(_packages()),
        machine=Host(name=socket.gethostname(), num_cores=len(os.sched_getaffinity(0)), gpus=tuple(_gpus())),
        parents=parents_of(config),
    )


def config_hash(config: RunConfig) -> str:
    """Returns a hash of a resolved config, of what says where the run is aside."""
    values = json.dumps(config.model_dump(mode="json", exclude=OF_THE_PLACE), sort_keys=True)
    return hashlib.blake2b(values.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def parents_of(config: RunConfig) -> dict[str, Parent]:
    """Returns the finished runs in whose folders the models and rows of a config lie, by its keys."""
    parents = {key: _parent_at(Path(place)) for key, place in _places(config)}
    return {key: parent for key, parent in parents.items() if parent is not None}


def _places(config: RunConfig) -> Iterator[tuple[str, str]]:
    named = config.model_dump(mode="json", exclude={*OF_THE_PLACE, "data"})
    yield from ((key, text) for key, text in texts_of(named) if text.startswith("/") and "\n" not in text)
    for split in planner_of(config).splits(config):
        for number, source in enumerate(getattr(config.data, split) or []):
            path = local_path(config.data, source, split)
            if path is not None and not isinstance(path, RemotePath):
                yield f"data.{split}.{number}.path", str(path.absolute())


def _parent_at(place: Path) -> Parent | None:
    """Returns the innermost finished run that a place is, or lies in."""
    try:
        for folder in (place, *place.parents):
            if (folder / "config.yaml").is_file() and (known_by := manifest_hash(folder)) is not None:
                return Parent(run=str(folder), manifest=known_by)
    except (OSError, ValueError):
        return None  # a text that no file system takes for a path
    return None


def _packages() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _gpus() -> Iterator[str]:
    """Yields what the driver calls each GPU of this machine."""
    for file in sorted(GPUS.glob("*/information")):
        try:
            if found := re.search(r"^Model:\s*(.+?)\s*$", file.read_text(), re.MULTILINE):
                yield found[1]
        except OSError:
            continue
