"""What is planned for PPO: the groups, how a rollout divides, what a rank holds, what may change when it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import dump, load_mapping
from scaleup.errors import ScaleupError
from scaleup.plan.describe import Described
from scaleup.plan.facts import ModelFacts
from scaleup.plan.groups import resized
from scaleup.plan.machine import Machine
from scaleup.plan.resolve import resolve
from scaleup.plan.resume import state_of
from scaleup.plan.types import Plan
from tests.cli import differing
from tests.fake_facts import FACTS

RAW: dict[str, Any] = {
    "stage": "ppo",
    "name": "x",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{text}", "max_length": 64},
    "ppo": {"num_rollouts": 3, "rollout_batch_size": 48, "num_mini_batches": 2, "num_ppo_epochs": 4},
    "reward": {"model": {"path": "builtin:tiny-bert"}},
}
POLICY = FACTS.model_copy(update={"hidden_size": 20, "vocab_size": 40, "tokenizer_size": 40})
SCORER = FACTS.model_copy(update={"task": "sequence_classification", "labels": ("LABEL_0",), "pooling": "whole"})
WHOLE, TRAINED = 800 + 100 + 2 * 50, 900
HEAD = 20 + 1

MakePlan = Callable[..., Plan]


@pytest.fixture
def ppo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> MakePlan:
    def make(changes: dict[str, Any] | None = None, num_gpus: int = 0, facts: ModelFacts = POLICY) -> Plan:
        def known(models: Any, *_: Any) -> Described:
            return Described({where: SCORER if where == "reward.model" else facts for where in models})

        monkeypatch.setattr("scaleup.plan.resolve.describe_models", known)
        machine = Machine(num_cores=8, num_gpus=num_gpus)
        return resolve(load_mapping(differing(RAW, changes or {})), machine, resume=True)[1]

    return make


class TestGroups:
    def test_share_the_cores_of_the_node(self, ppo: MakePlan) -> None:
        plan = ppo({"parallel.num_processes": 3, "reward.parallel.num_processes": 1, "reward.max_restarts": 5})
        policy, reward = plan.groups
        assert (policy.name, policy.serves, policy.threads_per_process) == ("policy", False, 2)
        assert (reward.name, reward.serves, reward.threads_per_process, reward.max_restarts) == ("reward", True, 2, 5)
        assert (reward.strategy, reward.engine, reward.distributed_type) == ("single", "none", "NO")
        bridge = plan.bridges["reward"]
        assert (bridge.address, bridge.port) == ("127.0.0.1", None)

    def test_have_gpus_one_after_another(self, ppo: MakePlan) -> None:
        changes = {"parallel.num_processes": 2, "reward.parallel.num_processes": 2}
        policy, reward = ppo(changes, num_gpus=4).groups
        assert (policy.first_device, reward.first_device) == (0, 2)
        with pytest.raises(ScaleupError, match=r"2 of the policy and 2 of the reward group need 4 GPUs, .* has 3"):
            ppo(changes, num_gpus=3)
        assert ppo({**changes, "reward.parallel.device": "cpu"}, num_gpus=2).groups[1].first_device == 0

    def test_over_several_nodes_meet_at_the_first(self, ppo: MakePlan) -> None:
        nodes = {"num_processes": 4, "num_nodes": 2, "main_address": "n0", "main_port": 29500}
        plan = ppo({"parallel": nodes, "reward.bridge_port": 4000})
        assert (plan.bridges["reward"].address, plan.bridges["reward"].port) == ("n0", 4000)
        assert [(group.num_nodes, group.main_address) for group in plan.groups] == [(2, "n0"), (1, None)]

    def test_a_reward_group_with_a_node_of_its_own(self, ppo: MakePlan) -> None:
        changes = {"parallel": {"num_processes": 4, "num_nodes": 2, "interface": "ib0"}, "reward.own_nodes": True}
        plan = ppo({**changes, "reward.parallel.num_processes": 2}, num_gpus=2)
        policy, reward = plan.groups
        assert (plan.num_nodes, policy.first_node, reward.first_node, reward.first_device) == (3, 0, 2, 0)
        assert [policy.is_on(rank) for rank in range(4)] == [True, True, False, False]
        assert [reward.is_on(rank) for rank in range(4)] == [False, False, True, False]
        assert policy.interface == reward.interface == "ib0"
        assert policy.threads_per_process == reward.threads_per_process, "each has its nodes' cores for itself"
        assert plan.bridges["reward"].address is None, "found at each start"

    @pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
    def test_a_sharded_reward_model_has_no_optimizer(self, ppo: MakePlan, strategy: str) -> None:
        plan = ppo({"reward.parallel": {"strategy": strategy, "num_processes": 2}, "reward.mixed_precision": "bf16"})
        group, memory = plan.groups[1], plan.serving_memory["reward"]
        assert (memory.gradients, memory.optimizer) == (0, 0)
        assert (group.strategy, group.mixed_precision) == (strategy, "bf16")
        if strategy == "zero3":
            assert group.deepspeed is not None and group.deepspeed["bf16"] == {"enabled": True}
            assert group.deepspeed["zero_optimization"]["stage"] == group.zero_stage == 3

    @pytest.mark.parametrize("placement", ["colocated", "http", "function"])
    def test_other_places_need_none(self, ppo: MakePlan, placement: str, folder: Path) -> None:
        (folder / "f.py").write_text("def f(prompts, completions): ...")
        own = {"colocated": RAW["reward"], "http": {"url": "http://h:1/s"}, "function": {"function": "f.py:f"}}
        plan = ppo({"reward": {**own[placement], "placement": placement}})
        assert ([group.name for group in plan.groups], plan.bridges, plan.serving_memory) == (["policy"], {}, {})
        assert ("reward.model" in plan.models) == (placement == "colocated")

    def test_another_size(self, ppo: MakePlan) -> None:
        """And back: the same plan."""
        for strategy in ("ddp", "zero3"):
            group = ppo({"reward.parallel": {"strategy": strategy, "num_processes": 2}}).groups[1]
            one = resized(group, 1)
            assert one.strategy == {"ddp": "single", "zero3": "zero3"}[strategy]
            assert one.threads_per_process == 2 * group.threads_per_process
            assert resized(one, 2) == group


class TestRollouts:
    def test_divide_into_steps_and_over_processes(self, ppo: MakePlan) -> None:
        plan = ppo({"parallel.num_processes": 2, "train": {"per_device_train_batch_size": 5}})
        rollouts = plan.rollouts
        assert rollouts is not None and plan.batch is None
        assert (rollouts.rows, rollouts.mini_batch, rollouts.rank_mini_batch, rollouts.micro_batch) == (48, 24, 12, 5)
        assert (rollouts.num_steps, rollouts.num_prompts) == (3 * 4 * 2, 10)

    def test_a_micro_batch_is_no_larger_than_a_mini_batch(self, ppo: MakePlan) -> None:
        rollouts = ppo({"ppo.num_mini_batches": 24}).rollouts
        assert rollouts is not None and rollouts.micro_batch == 2


class TestMemory:
    """Of float32, in float32 numbers; AdamW has two moments."""

    @staticmethod
    def of(plan: Plan) -> tuple[float, ...]:
        row = next(row for row in plan.memory if row.strategy in ("single", "ddp"))
        return tuple(size / 4 for size in (row.weights, row.reference, row.gradients, row.optimizer))

    def test_a_policy_its_values_and_its_reference(self, ppo: MakePlan) -> None:
        trained = TRAINED + HEAD
        assert self.of(ppo()) == (WHOLE + HEAD, WHOLE, trained, 2 * trained)

    def test_a_new_adapter_needs_no_reference(self, ppo: MakePlan) -> None:
        trained = TRAINED + HEAD
        assert self.of(ppo({"adapter": {"type": "lora"}})) == (WHOLE + HEAD, 0, trained, 2 * trained)

    def test_a_trunk_for_the_values(self, ppo: MakePlan) -> None:
        trained = 2 * TRAINED + HEAD
        assert self.of(ppo({"ppo.value_model": "separate"})) == (2 * WHOLE + HEAD, WHOLE, trained, 2 * trained)

    def test_the_head_of_that_trunk_is_frozen_where_nothing_shares_it(self, ppo: MakePlan) -> None:
        untied = [t.model_copy(update={"count": 2}) if t.shape == (40, 20) else t for t in POLICY.tensors]
        counts = {"num_parameters": WHOLE + 800, "num_trainable_parameters": TRAINED + 800}
        facts = POLICY.model_copy(update={"tensors": tuple(untied), **counts})
        weights, _, gradients, _ = self.of(ppo({"ppo.value_model": "separate"}, facts=facts))
        assert (weights, gradients) == (2 * (WHOLE + 800) + HEAD, 2 * TRAINED + 800 + HEAD)

    def test_sharded(self, ppo: MakePlan) -> None:
        plan = ppo({"parallel": {"num_processes": 2, "strategy": "zero3"}})
        by_name = {row.strategy: row for row in plan.memory}
        assert by_name["fsdp2"].reference < by_name["ddp"].reference == 4 * WHOLE


class TestResume:
    def state(self, ppo: MakePlan, changes: dict[str, Any]) -> str:
        written, config = ppo(), load_mapping(RAW).config
        assert config is not None
        run = RunFolder(Path(written.run_folder))
        run.path.mkdir(parents=True)
        run.config_file.write_text(dump(config), encoding="utf-8")
        written.save(run.plan_file)
        wanted = load_mapping(differing(RAW, changes)).config
        assert wanted is not None
        return state_of(run, wanted, None)

    @pytest.mark.parametrize(
        "changes",
        [
            {"reward.parallel": {"strategy": "zero3", "num_processes": 4}},
            {"reward.placement": "colocated", "reward.batch_size": 2},
            {"reward.timeout_seconds": 5, "reward.reconnect_seconds": 5, "reward.bridge_port": 4000},
            {"parallel": {"strategy": "zero2", "num_processes": 2}, "train.per_device_train_batch_size": 2},
        ],
    )
    def test_where_things_run_may_change(self, ppo: MakePlan, changes: dict[str, Any]) -> None:
        assert self.state(ppo, changes) == "unfinished"

    @pytest.mark.parametrize(
        "key", ["reward.label", "reward.template", "reward.score", "reward.model.path", "ppo.rollout_batch_size"]
    )
    def test_what_moves_the_trajectory_may_not(self, ppo: MakePlan, key: str) -> None:
        value = {"reward.score": "probability", "ppo.rollout_batch_size": 24}.get(key, "builtin:tiny-gpt2")
        with pytest.raises(ScaleupError, match=f"differs in {key}"):
            self.state(ppo, {key: value})


def test_the_tokenizer_must_end_texts(ppo: MakePlan) -> None:
    with pytest.raises(ScaleupError, match=r"model.tokenizer: .* has no eos token"):
        ppo(facts=POLICY.model_copy(update={"eos_token": None}))
