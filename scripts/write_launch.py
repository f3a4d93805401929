"""Write launch/ with the renderer that `scaleup render` uses, so that the two cannot differ.

python scripts/write_launch.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from scaleup.config.cluster import ClusterConfig
from scaleup.config.load import load_mapping
from scaleup.launcher.render.kubernetes import dumped, manifests
from scaleup.launcher.render.slurm import launch_script

FOLDER = Path(__file__).parent.parent / "launch"
LOCAL = """\
#!/bin/bash
# launch/local.sh CONFIG [KEY=VALUE]...   on this machine; goes on where the run was stopped
exec scaleup run "$@" --resume
"""
EXAMPLE: dict[str, Any] = {
    "stage": "sft",
    "name": "scaleup",
    "runs_dir": "/workspace/runs",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"root": "/workspace/data", "text": "{text}"},
    "train": {"max_steps": 1},
    "parallel": {"num_processes": 2, "num_nodes": 2, "device": "cuda"},
    "cluster": {
        "workdir": "/workspace",
        "container": {"image": "IMAGE"},
        "kubernetes": {"volume_claim": "workspace"},
    },
}
PPO = {
    "stage": "ppo",
    "ppo": {"num_rollouts": 1},
    "reward": {"own_nodes": True, "model": {"path": "builtin:tiny-bert-classifier"}},
}
KINDS = {"job": EXAMPLE, "trainjob": EXAMPLE, "jobset": {**{k: v for k, v in EXAMPLE.items() if k != "train"}, **PPO}}
HEAD = """\
# Written by scripts/write_launch.py. IMAGE has scaleup in it; the claim `workspace` holds config.yaml, data and runs.
# For another number of nodes, GPUs, a queue, variables: scaleup render CONFIG --target kubernetes
"""


def files() -> dict[str, str]:
    scripts = {"local.sh": LOCAL, "slurm.sbatch": launch_script(False), "slurm_ppo.sbatch": launch_script(True)}
    return {**scripts, **{f"kubernetes/{kind}.yaml": _manifests(kind) for kind in KINDS}}


def _manifests(kind: str) -> str:
    """As rendered, but with the config on the volume instead of beside the job: these know no run."""
    raw = yaml.safe_load(yaml.safe_dump(KINDS[kind]))
    raw["cluster"]["kubernetes"]["kind"] = kind
    config = load_mapping(raw).config
    assert config is not None and isinstance(config.cluster, ClusterConfig)
    documents = [document for document in manifests(config) if document["kind"] != "ConfigMap"]
    return HEAD + dumped([_with_config_on_volume(document) for document in documents])


def _with_config_on_volume(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_config_on_volume(item) for item in value if not _is_config_volume(item)]
    if isinstance(value, dict):
        return {key: _with_config_on_volume(item) for key, item in value.items()}
    return "config.yaml" if value == "/etc/scaleup/config.yaml" else value


def _is_config_volume(item: Any) -> bool:
    return isinstance(item, dict) and item.get("name") == "config"


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"wrote {FOLDER}", file=sys.stderr)
