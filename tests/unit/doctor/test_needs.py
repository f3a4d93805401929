"""What a plan needs, against machines that have it and machines that lack it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import load_mapping
from scaleup.config.run import RunConfig
from scaleup.doctor.finding import Finding
from scaleup.doctor.needs import need_of, plan_findings, torch_findings
from scaleup.doctor.network import port_findings
from scaleup.plan.machine import Machine
from scaleup.plan.torch_facts import DeviceFacts, TorchFacts
from scaleup.plan.types import GroupPlan, MemoryPlan, Plan
from tests.unit.launcher.plans import group, plan_of

MACHINE = Machine(num_cores=4, num_gpus=0, memory=2**34)
TORCH = TorchFacts(
    version="2.13.0",
    cuda=None,
    nccl=None,
    backends=("gloo",),
    devices=(),
    cuda_error=None,
    cpu_bf16=0.5,
    ops_folder="/cache/ops",
    ops_built=("deepspeed_shm_comm",),
)
T4 = DeviceFacts(name="Tesla T4", memory=2**34, capability="7.5", bf16=False)
ON_GPU: dict[str, Any] = {"device": "cuda", "backend": "nccl", "num_processes": 2}
BASE: dict[str, Any] = {
    "name": "x",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "text": "{text}"},
}


def plan(*groups: GroupPlan, **changes: Any) -> Plan:
    return plan_of(RunFolder(Path("/runs/x")), *groups).model_copy(update=changes)


def of_plan(planned: Plan, node_rank: int = 0, num_nodes: int = 1) -> dict[str, Finding]:
    return {finding.name: finding for finding in plan_findings(planned, node_rank, num_nodes, MACHINE)}


def of_torch(facts: TorchFacts, *groups: GroupPlan) -> dict[str, Finding]:
    return {finding.name: finding for finding in torch_findings(plan(*groups), 0, facts)}


def config(**changes: Any) -> RunConfig:
    loaded = load_mapping({**BASE, "stage": "sft", "train": {"max_steps": 4}, **changes})
    assert loaded.config is not None and not loaded.problems
    return loaded.config


def held(total: int) -> MemoryPlan:
    return MemoryPlan(strategy="single", weights=total, gradients=0, optimizer=0, peak=total)


@pytest.mark.parametrize(
    ("needs", "fitting", "level"), [(50, ["single"], "ok"), (95, [], "warn"), (101, [], "fail"), (101, None, "fail")]
)
def test_memory(needs: int, fitting: list[str] | None, level: str) -> None:
    mebi = 2**20
    found = of_plan(plan(memory=[held(needs * mebi)], device_memory=100 * mebi, fitting=fitting))["memory"]
    assert found.level == level and f"needs {needs}.0 MiB of 100.0 MiB at its peak" in found.what


def test_memory_that_is_not_known() -> None:
    assert of_plan(plan(memory=[held(1)]))["memory"].level == "warn"


def test_nodes_that_did_not_look() -> None:
    planned = plan(group(num_processes=4, num_nodes=2))
    found = of_plan(planned)["nodes"]
    assert found.level == "warn" and "--nodes 2 --node-rank" in found.remedy
    assert "nodes" not in of_plan(planned, 1, 2)
    assert of_plan(planned, 0, 3)["nodes"].remedy == "ask for fewer"


def test_more_processes_than_cores() -> None:
    many = group(num_processes=12, num_nodes=2)
    assert of_plan(plan(many))["cores"].level == "warn"
    assert of_plan(plan(many))["cores"].what == "6 process(es) on this node's 4 cores"
    assert of_plan(plan(group()))["cores"].level == "ok"
    beside = group(name="reward", first_node=2)
    assert of_plan(plan(many, beside), node_rank=2)["cores"].what == "1 process(es) on this node's 4 cores"


def test_gpus_and_a_backend_that_are_not_there() -> None:
    found = of_torch(TORCH, group(**ON_GPU))
    assert found["GPUs"].level == "fail" and "needs 2 on this node, and torch finds 0" in found["GPUs"].what
    assert found["torch"].level == "fail" and "talks through nccl" in found["torch"].what
    both = TORCH.model_copy(update={"devices": (T4, T4), "backends": ("gloo", "nccl")})
    assert of_torch(both, group(**ON_GPU)) == {}


def test_precision_on_the_planned_device() -> None:
    both = TORCH.model_copy(update={"devices": (T4, T4), "backends": ("nccl",)})
    found = of_torch(both, group(**ON_GPU, mixed_precision="bf16"))["mixed_precision"]
    assert found.level == "fail" and "Tesla T4" in found.what
    on_cpu = group(mixed_precision="bf16")
    assert of_torch(TORCH, on_cpu)["mixed_precision"].level == "ok"
    slow = TORCH.model_copy(update={"cpu_bf16": 3.0})
    assert "3.0 x float32's time" in of_torch(slow, on_cpu)["mixed_precision"].what
    none = TORCH.model_copy(update={"cpu_bf16": None})
    assert of_torch(none, on_cpu)["mixed_precision"].level == "fail"


def test_deepspeeds_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}}
    key = "DeepSpeed's operations"
    zero = group(strategy="zero2", zero_stage=2, deepspeed=settings)
    assert of_torch(TORCH, zero)[key].level == "ok"
    offloading = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    found = of_torch(TORCH, zero.model_copy(update={"deepspeed": offloading}))[key]
    assert found.level == "warn" and found.what.startswith("cpu_adam: compiled at the first start")
    monkeypatch.setenv("CXX", "/no/such/compiler")
    found = of_torch(TORCH.model_copy(update={"ops_built": ()}), zero)[key]
    assert found.level == "fail" and "'/no/such/compiler'" in found.what
    assert key not in of_torch(TORCH, group())


def test_what_a_run_writes() -> None:
    """1,000 trained parameters of four bytes, and AdamW's two moments of each."""
    need = need_of(config(), plan())
    assert need is not None and (need.checkpoint, need.kept, need.model) == (12_000, 3, 4000)
    plain = need_of(config(train={"max_steps": 4, "optimizer": "sgd", "save_total_limit": 1, "eval_steps": 2}), plan())
    assert plain is not None and (plain.checkpoint, plain.kept) == (4000, 3)
    assert plain.total == 16_000
    zero = plan(group(strategy="zero2", zero_stage=2))
    low = need_of(config(mixed_precision="bf16"), zero)
    assert low is not None and low.checkpoint == 14_000


def test_ports_are_looked_at_where_the_run_listens() -> None:
    ppo = {
        **BASE,
        "stage": "ppo",
        "data": {"train": "rows.jsonl", "prompt": "{text}"},
        "ppo": {"num_rollouts": 1},
        "parallel": {"num_processes": 2, "num_nodes": 2},
    }
    with socket.socket() as one, socket.socket() as two:
        for taken in (one, two):
            taken.bind(("", 0))
            taken.listen()
        first, second = one.getsockname()[1], two.getsockname()[1]
        reward = {
            "model": {"path": "runs/reward"},
            "own_nodes": True,
            "bridge_port": first,
            "parallel": {"main_port": second},
        }
        asked = load_mapping({**ppo, "reward": reward}).config
        assert asked is not None
        levels = [[(each.name, each.level) for each in port_findings(asked, rank)] for rank in (0, 1, 2)]
        assert levels == [[("reward.bridge_port", "fail")], [], [("reward.parallel.main_port", "fail")]]
        single = config(parallel={"main_port": first})
        assert [each.name for each in port_findings(single, 0)] == ["parallel.main_port"]
        assert list(port_findings(single, 1)) == []
