"""Mistakes in what a run asks a scheduler for: found before anything is written or submitted."""

from __future__ import annotations

from typing import Any

from tests.e2e.mistakes.case import Case, bad

RENDER = ("render", "config.yaml")
TWO_NODES = {"parallel.num_processes": 4, "parallel.num_nodes": 2}
PODS = {"container": {"image": "x"}, "kubernetes": {"volume_claim": "runs"}}


def job(name: str, *lines: str, command: tuple[str, ...] = RENDER, **rest: Any) -> Case:
    return bad(name, *lines, command=command, **rest)


CLUSTERS = [
    job("no cluster", "error: cluster: is missing -> say what to ask the scheduler for"),
    job("submitted without a cluster", "error: cluster: is missing", command=("submit", "config.yaml", "--dry-run")),
    job(
        "fewer nodes than the run has",
        "error: cluster.nodes: 1 granted, and the run needs 2 (parallel.num_nodes) -> use 2",
        changes={**TWO_NODES, "cluster.nodes": 1},
    ),
    job(
        "GPUs that do not divide",
        "error: cluster.gpus_per_node: 3 GPUs do not divide into the processes of a node, which use 2 (policy 2)",
        changes={**TWO_NODES, "cluster.gpus_per_node": 3},
    ),
    job(
        "a limit without time to save",
        "error: cluster.time: 60 s is over before cluster.signal_seconds, 2 min, begin -> allow more time",
        changes={"cluster.time": "1"},
    ),
    job(
        "a time that YAML reads as a number",
        "error: cluster.time: 45000 is a number, as YAML also reads a bare 12:30:00: put the time in quotes",
        overrides=("cluster.time=12:30:00",),
    ),
    job(
        "words that are no option",
        "error: cluster.slurm.sbatch.0: '#SBATCH --exclusive' is no option of sbatch",
        "error: cluster.slurm.partition: 'a b' should be one word without quotes",
        "error: cluster.environment.A-B",
        changes={
            "cluster": {"slurm": {"sbatch": ["#SBATCH --exclusive"], "partition": "a b"}, "environment": {"A-B": 1}}
        },
    ),
    job(
        "options that are scaleup's",
        "error: cluster.slurm.sbatch.0: '--array=0-3' is decided by scaleup: use --sweep",
        changes={"cluster.slurm.sbatch": ["--array=0-3"]},
    ),
    job(
        "an unknown key",
        "error: cluster.partition: unknown key",
        changes={"cluster": {"partition": "gpu"}},
    ),
    job(
        "a reward node of a run without one",
        "error: cluster.reward: only applies to runs whose reward group has a node of its own -> set",
        changes={"cluster.reward.gpus_per_node": 0},
    ),
    job(
        "Kubernetes without its section",
        "error: cluster.kubernetes: is missing -> give at least its volume_claim",
        command=(*RENDER, "--target", "kubernetes"),
        changes={"cluster.nodes": 1},
    ),
    job(
        "Kubernetes with names and folders that are none there",
        "error: name: 'My_Run' cannot be the name of a Kubernetes job",
        "error: runs_dir: /nowhere/runs is not on the volume, which is mounted at ",
        changes={"name": "My_Run", "runs_dir": "/nowhere/runs", "cluster": PODS},
    ),
    job(
        "several at once, and elsewhere",
        "error: cluster.nodes: 3 granted, and the run needs 1",
        "error: cluster.gpus_per_node: 2 GPUs do not divide",
        "error: train.max_steps: and train.num_train_epochs exclude each other",
        "nothing.jsonl",
        changes={
            "cluster": {"nodes": 3, "gpus_per_node": 2},
            "train.num_train_epochs": 1,
            "data.validation": "nothing.jsonl",
        },
    ),
    job(
        "a sweep without values",
        "error: --sweep train.seed: lists no values",
        "error: --sweep name: is the same for all points",
        command=(*RENDER, "--sweep", "train.seed", "--sweep", "name=[a, b]"),
        changes={"cluster.nodes": 1},
    ),
    job(
        "a point that cannot be",
        "error: point 1 (train.warmup_steps=9): train.warmup_steps: is longer than max_steps 4",
        command=(*RENDER, "--sweep", "train.warmup_steps=[2, 9]"),
        changes={"cluster.nodes": 1},
        asks=True,
    ),
    job(
        "a folder that is not empty",
        "error: --output .: is not empty -> name another",
        command=(*RENDER, "-o", "."),
        changes={"cluster.nodes": 1},
    ),
]

CASES = {"cluster": CLUSTERS}
