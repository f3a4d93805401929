"""What a group's launch file tells `accelerate launch`, asked of Accelerate itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from scaleup.artifacts.run_folder import RunFolder
from scaleup.launcher.prepare import accelerate_settings, write_launch_file
from scaleup.plan.types import GroupPlan
from tests.unit.launcher.plans import group

MULTI = {"num_processes": 4, "strategy": "ddp", "distributed_type": "MULTI_CPU", "engine": "DistributedDataParallel"}
ZERO = {
    "num_processes": 2,
    "strategy": "zero2",
    "distributed_type": "DEEPSPEED",
    "engine": "DeepSpeedEngine",
    "zero_stage": 2,
    "deepspeed": {"gradient_clipping": 0.0, "zero_optimization": {"stage": 2}},
}
FSDP = {"num_processes": 2, "strategy": "fsdp2", "distributed_type": "FSDP", "engine": "FSDPModule"}
KINDS = {
    "one": {},
    "several": MULTI,
    "zero": ZERO,
    "zero-one": {**ZERO, "num_processes": 1},
    "fsdp": FSDP,
    "fsdp-one": {**FSDP, "num_processes": 1},
}
LaunchFile = Callable[[GroupPlan], Path]


@pytest.fixture
def launch_file(run: RunFolder) -> LaunchFile:
    """Writes a group's launch file and gives its path."""

    def write(group: GroupPlan) -> Path:
        run.launch_file(group.name).parent.mkdir(exist_ok=True)
        write_launch_file(run, group)
        return run.launch_file(group.name)

    return write


def test_one_process() -> None:
    settings = accelerate_settings(group())
    assert (settings["distributed_type"], settings["num_processes"], settings["num_machines"]) == ("NO", 1, 1)
    assert settings["use_cpu"] is True


def test_several_cpu_processes_are_started_as_if_on_gpus() -> None:
    """With MULTI_CPU or use_cpu, `accelerate launch` starts one process a machine and says nothing."""
    settings = accelerate_settings(group(**MULTI))
    assert (settings["distributed_type"], settings["num_processes"]) == ("MULTI_GPU", 4)
    assert settings["use_cpu"] is False


def test_a_gpu_is_used() -> None:
    assert accelerate_settings(group(device="cuda", backend="nccl"))["use_cpu"] is False


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_deepspeed_starts_every_process(num_processes: int, device: str) -> None:
    """Its settings stay in the plan: two places for them would be one too many."""
    backend = "gloo" if device == "cpu" else "nccl"
    settings = accelerate_settings(group(**{**ZERO, "num_processes": num_processes}, device=device, backend=backend))
    assert (settings["distributed_type"], settings["num_processes"]) == ("DEEPSPEED", num_processes)
    assert settings["use_cpu"] is False
    assert settings["deepspeed_config"] == {"zero3_init_flag": False, "deepspeed_multinode_launcher": "standard"}
    assert "fsdp_config" not in settings


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fsdp_is_version_2(num_processes: int, device: str) -> None:
    backend = "gloo" if device == "cpu" else "nccl"
    settings = accelerate_settings(group(**{**FSDP, "num_processes": num_processes}, device=device, backend=backend))
    assert (settings["distributed_type"], settings["num_processes"]) == ("FSDP", num_processes)
    assert settings["use_cpu"] is False
    assert settings["fsdp_config"] == {"fsdp_version": 2}
    assert "deepspeed_config" not in settings


def test_plain_strategies_bring_no_settings_of_others() -> None:
    for changes in ({}, MULTI):
        assert {"deepspeed_config", "fsdp_config"}.isdisjoint(accelerate_settings(group(**changes)))


def test_nodes_meet_at_the_first_one() -> None:
    nodes = group(**MULTI, num_nodes=2, main_address="n0", main_port=29500)
    settings = accelerate_settings(nodes, node_rank=1)
    assert (settings["num_machines"], settings["machine_rank"], settings["num_processes"]) == (2, 1, 4)
    assert (settings["main_process_ip"], settings["main_process_port"]) == ("n0", 29500)


def test_runs_beside_one_another_have_ports_of_their_own() -> None:
    assert accelerate_settings(group(**MULTI))["main_process_port"] == 0


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_file_says_the_same(precision: str, launch_file: LaunchFile) -> None:
    """Also for `no`, which YAML would read as false were it bare."""
    made = group(**MULTI, mixed_precision=precision)
    settings = yaml.safe_load(launch_file(made).read_text())
    assert settings == accelerate_settings(made)
    assert settings["mixed_precision"] == precision


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_accelerate_knows_every_key(changes: dict[str, object], launch_file: LaunchFile) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    file = launch_file(group(**changes))
    assert load_config_from_file(str(file)).num_processes == group(**changes).num_processes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["several", "zero-one", "fsdp-one"])
def test_accelerate_starts_as_many_processes_as_planned(kind: str, tmp_path: Path, launch_file: LaunchFile) -> None:
    """The silent failure this file exists to prevent, asked of Accelerate itself."""
    planned = group(**KINDS[kind])
    file = launch_file(planned)
    script = tmp_path / "say.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "pathlib.Path(sys.argv[1], 'rank' + os.environ['RANK']).write_text(os.environ['WORLD_SIZE'])\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    done = subprocess.run([*command, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = {f"rank{rank}": str(planned.num_processes) for rank in range(planned.num_processes)}
    assert {file.name: file.read_text() for file in tmp_path.glob("rank*")} == expected
