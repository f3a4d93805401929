"""What is planned where several reward models have process groups of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.bridge_file import BridgeFile
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.cluster import ClusterConfig
from scaleup.config.load import dump, load_mapping
from scaleup.config.run import RunConfig
from scaleup.errors import ScaleupError
from scaleup.launcher.prepare import renew_bridges
from scaleup.launcher.rendezvous import named_hosts, named_interfaces, named_ports
from scaleup.plan.cluster import Granted, cluster_problems, granted, granted_to_reward, nodes_of, with_reward_device
from scaleup.plan.describe import Described
from scaleup.plan.facts import Tensors
from scaleup.plan.groups import patience_problems
from scaleup.plan.machine import Machine
from scaleup.plan.places import place_marks
from scaleup.plan.resolve import resolve
from scaleup.plan.resume import state_of
from scaleup.plan.types import Plan
from tests.cli import differing
from tests.fake_facts import FACTS

POLICY = FACTS.model_copy(update={"hidden_size": 20, "vocab_size": 40, "tokenizer_size": 40})
SCORER = FACTS.model_copy(
    update={
        "task": "sequence_classification",
        "labels": ("LABEL_0",),
        "pooling": "whole",
        "tensors": (Tensors(shape=(1000, 50), count=1),),
    }
)
LIKED: dict[str, Any] = {"name": "liked", "model": {"path": "builtin:tiny-bert"}}
KIND = LIKED | {"name": "kind", "weight": -0.5}
WEB: dict[str, Any] = {"name": "web", "placement": "http", "url": "http://somewhere:1/score"}
RAW: dict[str, Any] = {
    "stage": "rl",
    "name": "x",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{text}", "max_length": 64},
    "algorithm": {"type": "rloo", "num_generations": 2},
    "rollouts": {"num_rollouts": 3, "batch_size": 48},
    "rewards": [LIKED, WEB, KIND],
}

MakePlan = Callable[..., Plan]


def config_of(*rewards: dict[str, Any], **changes: Any) -> RunConfig:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    loaded = load_mapping(differing(RAW | {"rewards": list(rewards) or RAW["rewards"]}, dotted))
    assert loaded.config is not None and not loaded.problems
    return loaded.config


@pytest.fixture
def planned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> MakePlan:
    def make(*rewards: dict[str, Any], num_gpus: int = 0, **changes: Any) -> Plan:
        def known(models: Any, *_: Any) -> Described:
            return Described({where: SCORER if where.startswith("rewards.") else POLICY for where in models})

        monkeypatch.setattr("scaleup.plan.resolve.describe_models", known)
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        loaded = load_mapping(differing(RAW | {"rewards": list(rewards) or RAW["rewards"]}, dotted))
        return resolve(loaded, Machine(num_cores=12, num_gpus=num_gpus), resume=True)[1]

    return make


def parallel(**settings: Any) -> dict[str, Any]:
    return {"parallel": settings}


def test_each_has_its_name_its_bridge_and_its_memory(planned: MakePlan) -> None:
    plan = planned(LIKED, WEB, KIND | parallel(num_processes=3), parallel__num_processes=2)
    assert [group.name for group in plan.groups] == ["policy", "reward-liked", "reward-kind"]
    assert [group.serves for group in plan.groups] == [False, True, True]
    assert [group.threads_per_process for group in plan.groups] == [2, 2, 2], "6 processes on 12 cores"
    assert list(plan.bridges) == list(plan.serving_memory) == ["reward-liked", "reward-kind"]
    assert [each.group for each in plan.loading] == ["policy", "reward-liked", "reward-kind"]
    assert plan.loading[0] == planned(WEB, parallel__num_processes=2).loading[0], "the policy loads none of theirs"
    assert plan.loading[1].rank >= 4 * 1000 * 50
    assert plan.loading[2].node == 3 * plan.loading[1].node


def test_gpus_come_one_after_another(planned: MakePlan) -> None:
    rewards = LIKED | parallel(num_processes=2), KIND
    plan = planned(*rewards, num_gpus=4)
    assert [group.first_device for group in plan.groups] == [0, 1, 3]
    with pytest.raises(ScaleupError) as refused:
        planned(*rewards, num_gpus=3)
    [problem] = refused.value.problems
    assert problem.where == "rewards.1.parallel.num_processes"
    shown = "1 of the policy and 2 of group reward-liked and 1 of group reward-kind need 4 GPUs"
    assert problem.what == f"{shown}, and this machine has 3"


def test_those_with_a_node_of_their_own_share_it(planned: MakePlan) -> None:
    own = {"own_nodes": True}
    rewards = LIKED | own | parallel(num_processes=2), KIND | own, LIKED | {"name": "here"}
    plan = planned(*rewards, num_gpus=4, parallel={"num_processes": 4, "num_nodes": 2})
    assert (plan.num_nodes, [group.first_node for group in plan.groups]) == (3, [0, 2, 2, 0])
    assert [group.first_device for group in plan.groups] == [0, 0, 2, 2]
    assert [group.threads_per_process for group in plan.groups] == [4, 4, 4, 4], "3 processes on a node of 12 cores"


def test_a_cluster_grants_what_all_of_them_use() -> None:
    own = {"own_nodes": True}
    config = config_of(LIKED | own | parallel(num_processes=2), KIND | own, LIKED | {"name": "here"})
    cluster = ClusterConfig.model_validate({"gpus_per_node": 2, "reward": {"gpus_per_node": 3}})
    assert (nodes_of(config), granted(config, cluster).gpus, cluster_problems(config, cluster)) == (2, 2, [])
    assert granted_to_reward(config, cluster) == Granted(3, None, None)
    settled = with_reward_device(config, cluster)
    assert [reward.source.parallel.device for reward in settled.reward_sources] == ["cuda", "cuda", "auto"]
    fewer = ClusterConfig.model_validate({"gpus_per_node": 2})
    assert [problem.where for problem in cluster_problems(config, fewer)] == ["rewards.0.parallel.num_processes"]


def test_hosts_ports_and_interfaces_are_known_by_their_keys() -> None:
    named = {"bridge_port": 1001, "parallel": {"interface": "ib0", "main_port": 1002}}
    config = config_of(LIKED, WEB, KIND | named)
    assert list(named_ports(config)) == [("rewards.2.bridge_port", 1001), ("rewards.2.parallel.main_port", 1002)]
    assert list(named_interfaces(config)) == [("rewards.2.parallel.interface", "ib0")]
    assert list(named_hosts(config)) == [("rewards.1.url", "somewhere")]


def test_the_slowest_answer_is_what_a_rank_may_wait_for() -> None:
    config = config_of(LIKED, WEB | {"timeout_seconds": 500}, parallel__progress_timeout_seconds=400)
    [problem] = patience_problems(config)
    assert "400 is not more than rewards.1.timeout_seconds 500" in problem.what


def test_bridges_have_a_file_a_port_and_a_secret_each(planned: MakePlan, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    renew_bridges(run, planned(LIKED, KIND), None)
    told = [run.bridge_file(name).read_text() for name in ("reward-liked", "reward-kind")]
    assert len(set(told)) == 2 and "127.0.0.1" in told[0]
    assert run.bridge_file("reward").name == "bridge.json", "as runs of stage ppo have it since their first version"


def test_no_two_bridges_have_one_port(planned: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor that of a group which names its own; nobody listens yet when ports are chosen."""
    monkeypatch.setattr("scaleup.artifacts.bridge_file.PORTS", range(30_000, 30_003))
    monkeypatch.setattr("scaleup.artifacts.bridge_file.TRIES", 3)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    plan = planned(LIKED, KIND | {"bridge_port": 30_001}, LIKED | {"name": "third"})
    for _ in range(5):
        renew_bridges(run, plan, None)
        assert {BridgeFile.read(run.bridge_file(name)).port for name in plan.bridges} == {30_000, 30_001, 30_002}


def test_a_plan_of_the_one_group_that_there_was_is_read(planned: MakePlan) -> None:
    plan = planned(LIKED)
    earlier = plan.model_dump(mode="json", exclude={"bridges", "serving_memory"})
    earlier |= {"bridge": {"address": "n0", "port": 1}, "reward_memory": plan.serving_memory["reward-liked"]}
    read = Plan.model_validate(earlier)
    assert read.bridges["reward"].address == "n0"
    assert read.serving_memory == {"reward": plan.serving_memory["reward-liked"]}
    none = Plan.model_validate({**earlier, "bridge": None, "reward_memory": None})
    assert (none.bridges, none.serving_memory) == ({}, {})


def test_where_scores_come_from_may_change_when_a_run_goes_on(planned: MakePlan) -> None:
    def state(*rewards: dict[str, Any]) -> str:
        return state_of(run, config_of(*rewards), None)

    planned(LIKED, WEB)
    config = config_of(LIKED, WEB)
    run = RunFolder(Path(config.runs_dir) / config.name)
    run.path.mkdir(parents=True)
    run.config_file.write_text(dump(config))
    assert state(LIKED | {"placement": "colocated"}, WEB | {"url": "http://b:2/", "timeout_seconds": 9}) == "unfinished"
    assert state(LIKED | {"own_nodes": True} | parallel(num_processes=2), WEB) == "unfinished"
    for other in ([LIKED | {"weight": 2.0}, WEB], [WEB, LIKED], [LIKED], [LIKED, WEB | {"name": "net"}]):
        with pytest.raises(ScaleupError, match="holds another run"):
            state(*other)


def test_only_what_may_not_change_is_marked(tmp_path: Path) -> None:
    for name in ("model", "score"):
        (tmp_path / f"{name}.py").write_text("def f(): ...")
    function = {"name": "f", "placement": "function", "function": f"{tmp_path / 'score.py'}:f"}
    config = config_of(function, WEB | {"url": str(tmp_path / "model.py")})
    assert list(place_marks(config)) == ["rewards.0.function"]
