"""The job's nodes: what they have, what the run uses of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import load_mapping
from scaleup.config.run import RunConfig
from scaleup.config.stages.ppo import PPOConfig
from scaleup.plan.cluster import (
    Granted,
    cluster_machine,
    cluster_problems,
    granted,
    granted_to_reward,
    nodes_of,
    seconds_a_step,
    with_reward_device,
)
from scaleup.plan.cluster_targets import kubernetes_problems, slurm_problems
from scaleup.plan.machine import Machine
from scaleup.plan.stages import planner_of
from tests.cli import differing
from tests.unit.plan.conftest import RAW

PPO = {
    **{key: value for key, value in RAW.items() if key != "train"},
    "stage": "ppo",
    "ppo": {"num_rollouts": 2},
    "reward": {"model": {"path": "builtin:tiny-bert-classifier"}, "parallel": {"num_processes": 2}},
}


def config_of(raw: dict[str, Any] = RAW, **changes: Any) -> RunConfig:
    dotted = {key.replace("__", "."): value for key, value in {"cluster": {}, **changes}.items()}
    loaded = load_mapping(differing(raw, dotted))
    assert loaded.problems == []
    assert loaded.config is not None
    return loaded.config


def problems_of(config: RunConfig) -> dict[str, str]:
    assert config.cluster is not None
    return {problem.where: problem.what for problem in cluster_problems(config, config.cluster)}


def of(config: RunConfig) -> Any:
    assert config.cluster is not None
    return config, config.cluster


def test_nothing_named_is_what_the_run_needs() -> None:
    config = config_of(parallel={"num_processes": 8, "num_nodes": 2, "device": "cuda"})
    assert problems_of(config) == {}
    assert (nodes_of(config), granted(*of(config))) == (2, Granted(4, None, None))
    machine = cluster_machine(*of(config))
    assert (machine.num_gpus, machine.num_cores, machine.is_described) == (4, 32, True)


def test_auto_is_cuda_where_nodes_have_gpus() -> None:
    parallel = {"num_processes": 4}
    assert granted(*of(config_of(parallel=parallel))).gpus == 0
    assert problems_of(config_of(parallel=parallel, cluster={"gpus_per_node": 4})) == {}
    assert "cluster.gpus_per_node" in problems_of(config_of(parallel=parallel, cluster={"gpus_per_node": 3}))


def test_memory_is_what_auto_goes_by() -> None:
    cluster = {"gpus_per_node": 1, "gpu_memory": "80G", "memory": "512M", "cpus_per_node": 6}
    machine = cluster_machine(*of(config_of(cluster=cluster)))
    assert (machine.gpu_memory, machine.memory, machine.num_cores) == (80 * 2**30, 512 * 2**20, 6)


@pytest.mark.parametrize("nodes", [1, 3])
def test_other_nodes_than_the_run_has_are_refused(nodes: int) -> None:
    config = config_of(parallel={"num_processes": 4, "num_nodes": 2}, cluster={"nodes": nodes})
    assert problems_of(config) == {"cluster.nodes": f"{nodes} granted, and the run needs 2 (parallel.num_nodes)"}


def test_a_reward_groups_own_node_counts() -> None:
    config = config_of(PPO, reward__own_nodes=True, cluster={"nodes": 1})
    assert nodes_of(config) == 2
    assert "and one for reward groups" in problems_of(config)["cluster.nodes"]


def test_gpus_are_those_of_all_groups_on_a_node() -> None:
    beside = {"parallel": {"num_processes": 4, "device": "cuda"}, "reward__parallel__device": "cuda"}
    assert problems_of(config_of(PPO, cluster={"gpus_per_node": 6}, **beside)) == {}
    found = problems_of(config_of(PPO, cluster={"gpus_per_node": 8}, **beside))
    assert found == {
        "cluster.gpus_per_node": "8 GPUs do not divide into the processes of a node, which use 6 (policy 4, reward 2)"
    }


def test_the_reward_groups_node_may_be_another_kind() -> None:
    own = {"parallel": {"num_processes": 8, "device": "cuda"}, "reward__own_nodes": True}
    cluster = {"gpus_per_node": 8, "reward": {"gpus_per_node": 2, "memory": "32G"}}
    config = config_of(PPO, cluster=cluster, **own)
    assert problems_of(config) == {}
    assert granted_to_reward(*of(config)) == Granted(2, None, "32G")
    cluster["reward"] = {"gpus_per_node": 3}
    assert set(problems_of(config_of(PPO, cluster=cluster, **own))) == {"cluster.reward.gpus_per_node"}
    assert set(problems_of(config_of(PPO, cluster={"reward": {}}))) == {"cluster.reward"}
    many = config_of(PPO, cluster={"gpus_per_node": 1}, reward__own_nodes=True, reward__parallel__device="cuda")
    assert set(problems_of(many)) == {"reward.parallel.num_processes"}


@pytest.mark.parametrize(
    ("cluster", "what"),
    [
        ({"time": "2"}, "is over before cluster.signal_seconds"),
        ({"time": "2:01"}, None),
        ({"time": "1", "signal_seconds": 30}, None),
    ],
)
def test_time_must_be_left_to_run(cluster: dict[str, Any], what: str | None) -> None:
    found = problems_of(config_of(cluster=cluster))
    assert (what in found["cluster.time"]) if what else (found == {})


@pytest.mark.parametrize(("minutes", "is_refused"), [(8.0, False), (9.0, True), (None, False)])
def test_a_checkpoint_must_fit(minutes: float | None, is_refused: bool) -> None:
    config = config_of(cluster={"time": "10", "signal_seconds": 60})
    train = config.train.model_copy(update={"save_minutes": minutes})
    found = problems_of(config.model_copy(update={"train": train}))
    assert ("train.save_minutes is 9" in found.get("cluster.time", "")) == is_refused


def test_a_checkpoint_must_fit_by_what_the_run_took_so_far(tmp_path: Path) -> None:
    cluster = {"time": "5", "signal_seconds": 60}
    changes: dict[str, Any] = {"runs_dir": str(tmp_path), "train": {"max_steps": 90, "save_steps": 25}}
    assert problems_of(config_of(cluster=cluster, **changes)) == {}
    metrics = RunFolder(tmp_path / "x").metrics_file
    metrics.parent.mkdir()
    rows = [{"step": 2 * n, "num_tokens": 2000 * n, "tokens_per_second": 100.0} for n in range(1, 5)]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 8, "eval_loss": 1}]) + '{"ste')
    assert seconds_a_step(metrics) == pytest.approx(10.0)
    assert (
        "train.save_steps is 25, at 10 s a step so far"
        in problems_of(config_of(cluster=cluster, **changes))["cluster.time"]
    )
    changes["train"]["save_steps"] = 23
    assert problems_of(config_of(cluster=cluster, **changes)) == {}


def test_a_rollout_is_a_step_of_ppo(tmp_path: Path) -> None:
    metrics = RunFolder(tmp_path / "x").metrics_file
    metrics.parent.mkdir()
    metrics.write_text('{"step": 1, "time/rollout": 80}\n{"step": 2, "time/rollout": 120}\n{"step": 2, "eval": 1}\n')
    changes: dict[str, Any] = {"runs_dir": str(tmp_path), "train": {"save_steps": 3}}
    found = problems_of(config_of(PPO, cluster={"time": "6", "signal_seconds": 60}, **changes))
    assert "train.save_steps is 3, at 100 s a step so far" in found["cluster.time"]
    assert problems_of(config_of(PPO, cluster={"time": "7", "signal_seconds": 60}, **changes)) == {}


def test_metrics_that_say_nothing_forbid_nothing(tmp_path: Path) -> None:
    for text in ("", "{}\n", "no json\n", '{"step": 1, "num_tokens": 5, "tokens_per_second": 1}\n'):
        (tmp_path / "m").write_text(text)
        assert seconds_a_step(tmp_path / "m") is None
    assert seconds_a_step(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("gres", "gpus", "is_right"),
    [
        ("gpu:8", 8, True),
        ("gpu:8", 4, False),
        ("gpu:a100:8", 8, True),
        ("gpu:a100:8", 2, False),
        ("gpu:a100", 1, True),
        ("gpu", 2, False),
        ("gpu:a100:2,shard:4", 6, True),
    ],
)
def test_gpus_by_another_name_are_as_many(gres: str, gpus: int, is_right: bool) -> None:
    own = {"gres": gres, "gpus_per_node": gpus}
    for cluster, where in (
        ({"gpus_per_node": gpus, "slurm": {"gres": gres}}, "cluster.slurm.gres"),
        ({"reward": own}, "cluster.reward.gres"),
    ):
        config = config_of(PPO, reward__own_nodes=True, cluster=cluster)
        found = [problem.where for problem in slurm_problems(*of(config), is_sweep=False)]
        assert found == ([] if is_right else [where])


@pytest.mark.parametrize(
    ("device", "gpus", "settled"),
    [("auto", 0, "cpu"), ("auto", None, "cpu"), ("auto", 1, "cuda"), ("cpu", 1, "cpu"), ("cuda", 0, "cuda")],
)
def test_a_reward_groups_own_node_settles_its_device(device: str, gpus: int | None, settled: str) -> None:
    """The run is planned on the first node, whose GPUs say nothing of it."""
    reward = {"reward__own_nodes": True, "reward__parallel__device": device}
    config = config_of(PPO, cluster={"gpus_per_node": 1, "reward": {"gpus_per_node": gpus}}, **reward)
    assert device_of_reward(with_reward_device(*of(config))) == settled
    alike = config_of(PPO, cluster={"gpus_per_node": 1}, **reward)
    assert device_of_reward(with_reward_device(*of(alike))) == device


def device_of_reward(config: RunConfig) -> str:
    assert isinstance(config, PPOConfig)
    return config.reward.parallel.device


def test_gpus_of_another_node_are_not_looked_for_here() -> None:
    config = config_of(PPO, reward__own_nodes=True, reward__parallel__device="cuda")
    here = Machine(num_cores=2, num_gpus=0)
    assert [problem.where for problem in planner_of(config).config_problems(config, here)] == []
    beside = config_of(PPO, reward__parallel__device="cuda")
    assert [problem.where for problem in planner_of(beside).config_problems(beside, here)] == [
        "reward.parallel.num_processes"
    ]


def test_what_slurm_cannot() -> None:
    cluster = {
        "reward": {},
        "slurm": {"gres": "gpu:1"},
        "signal_seconds": 65536,
        "container": {"image": "x"},
        "workdir": "/a:b",
    }
    config = config_of(PPO, reward__own_nodes=True, cluster=cluster)
    wheres = [problem.where for problem in slurm_problems(*of(config), is_sweep=True)]
    assert wheres == ["cluster.reward", "cluster.gpus_per_node", "cluster.signal_seconds", "cluster.workdir"]
    assert list(slurm_problems(*of(config_of()), is_sweep=True)) == []


def test_what_kubernetes_cannot() -> None:
    assert [problem.where for problem in kubernetes_problems(*of(config_of()), False)] == ["cluster.kubernetes"]
    cluster = {"reward": {}, "kubernetes": {"volume_claim": "x", "mount_path": "/mnt"}}
    config = config_of(PPO, name="No_Label", runs_dir="/elsewhere", reward__own_nodes=True, cluster=cluster)
    wheres = [problem.where for problem in kubernetes_problems(*of(config), False)]
    assert wheres == ["cluster.container", "name", "runs_dir", "data.root", "cluster.reward"]
    here = config_of(cluster={"container": {"image": "x"}, "kubernetes": {"volume_claim": "x"}})
    assert list(kubernetes_problems(*of(here), False)) == []


def test_a_path_that_no_mount_can_name(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    changes = {"data__root": str(tmp_path / "a,b"), "model__path": str(tmp_path / "a,b")}
    config = config_of(cluster={"container": {"image": "x"}}, **changes)
    assert [problem.where for problem in slurm_problems(*of(config), False)] == ["data.root", "model.path"]


def test_what_pods_read_is_on_the_volume(tmp_path: Path) -> None:
    for name in ("volume", "model", "volume/tokenizer"):
        (tmp_path / name).mkdir()
    kubernetes = {"volume_claim": "x", "mount_path": str(tmp_path / "volume")}
    config = config_of(
        cluster={"container": {"image": "x"}, "kubernetes": kubernetes},
        runs_dir=str(tmp_path / "volume/runs"),
        model={"path": str(tmp_path / "model"), "tokenizer": str(tmp_path / "volume/tokenizer")},
        data__root=str(tmp_path),
    )
    assert [problem.where for problem in kubernetes_problems(*of(config), False)] == ["data.root", "model.path"]
