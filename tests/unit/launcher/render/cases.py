"""Jobs to render, with every folder fixed, so that what is rendered can be kept and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scaleup.config.load import load_mapping
from scaleup.config.run import RunConfig
from scaleup.launcher.render.job import Job
from tests.cli import differing

SFT: dict[str, Any] = {
    "stage": "sft",
    "name": "reviews",
    "runs_dir": "/shared/runs",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"root": "/shared/data", "train": "rows.jsonl", "text": "{text}"},
    "train": {"max_steps": 4},
    "parallel": {"num_processes": 16, "num_nodes": 2, "device": "cuda"},
    "cluster": {
        "cpus_per_node": 32,
        "memory": "200G",
        "time": "1-00:00:00",
        "workdir": "/shared/work",
        "setup": ["source .venv/bin/activate"],
        "environment": {"NCCL_DEBUG": "WARN"},
        "slurm": {"partition": "gpu", "account": "nlp", "modules": ["cuda/12.4"], "sbatch": ["--mail-type=END"]},
    },
}
PPO: dict[str, Any] = {
    **{key: value for key, value in SFT.items() if key != "train"},
    "stage": "ppo",
    "ppo": {"num_rollouts": 4},
    "reward": {
        "own_nodes": True,
        "model": {"path": "builtin:tiny-bert-classifier"},
        "parallel": {"num_processes": 2, "device": "cuda"},
    },
}
REWARD_NODE = {"gpus_per_node": 2, "cpus_per_node": 8, "memory": "64G", "partition": "small", "sbatch": ["--exclusive"]}
HOSTILE = {
    "SPACES": "  two  spaces ",
    "QUOTES": 'it\'s "quoted" `here`',
    "DOLLARS": "$HOME $(id) ${PATH} $$ $$(X) $",
    "NEWLINES": "one\ntwo\n",
    "BACKSLASH": "a\\b\\",
    "OTHERS": "*;&|<>!#~ ü",
    "EMPTY": "",
}
KUBERNETES: dict[str, Any] = {
    "slurm": None,
    "container": {"image": "images.example.org/scaleup:1"},
    "kubernetes": {
        "namespace": "nlp",
        "volume_claim": "shared",
        "mount_path": "/shared",
        "queue": "gpus",
        "shared_memory": "16G",
        "node_selector": {"example.org/gpu": "a100"},
    },
}


def config_of(raw: dict[str, Any], **cluster: Any) -> RunConfig:
    loaded = load_mapping(differing(raw, {f"cluster.{key}": value for key, value in cluster.items()}))
    assert loaded.problems == []
    assert loaded.config is not None
    return loaded.config


def job_of(raw: dict[str, Any] = SFT, folder: Path = Path("/shared/runs/reviews.jobs/1"), **cluster: Any) -> Job:
    return Job("reviews", folder, (config_of(raw, **cluster),))


def sweep_of(count: int, max_parallel: int | None = None, **cluster: Any) -> Job:
    configs = [config_of({**SFT, "name": f"reviews-{number}"}, **cluster) for number in range(count)]
    return Job("reviews", Path("/shared/runs/reviews.jobs/1"), tuple(configs), True, max_parallel)
