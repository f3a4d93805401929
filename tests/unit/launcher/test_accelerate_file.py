from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scaleup.launcher.accelerate_file import accelerate_settings, accelerate_yaml
from tests.unit.launcher.plans import group

MULTI = {"num_processes": 4, "strategy": "ddp", "distributed_type": "MULTI_CPU", "engine": "DistributedDataParallel"}


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


def test_nodes_meet_at_the_first_one() -> None:
    nodes = group(**MULTI, num_nodes=2, main_address="n0", main_port=29500)
    settings = accelerate_settings(nodes, node_rank=1)
    assert (settings["num_machines"], settings["machine_rank"], settings["num_processes"]) == (2, 1, 4)
    assert (settings["main_process_ip"], settings["main_process_port"]) == ("n0", 29500)


def test_runs_beside_one_another_have_ports_of_their_own() -> None:
    assert accelerate_settings(group(**MULTI))["main_process_port"] == 0


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_file_says_the_same(precision: str) -> None:
    """Also for `no`, which YAML would read as false were it bare."""
    made = group(**MULTI, mixed_precision=precision)
    assert yaml.safe_load(accelerate_yaml(made)) == accelerate_settings(made)
    assert yaml.safe_load(accelerate_yaml(made))["mixed_precision"] == precision


@pytest.mark.parametrize("changes", [{}, MULTI], ids=["one", "several"])
def test_accelerate_knows_every_key(changes: dict[str, object], tmp_path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    file = tmp_path / "policy.yaml"
    file.write_text(accelerate_yaml(group(**changes)))
    assert load_config_from_file(str(file)).num_processes == group(**changes).num_processes


def test_accelerate_starts_as_many_processes_as_planned(tmp_path: Path) -> None:
    """The silent failure this file exists to prevent, asked of Accelerate itself."""
    (tmp_path / "policy.yaml").write_text(accelerate_yaml(group(**{**MULTI, "num_processes": 3})))
    script = tmp_path / "say.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "pathlib.Path(sys.argv[1], 'rank' + os.environ['RANK']).write_text(os.environ['WORLD_SIZE'])\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "policy.yaml")]
    done = subprocess.run([*command, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {file.name: file.read_text() for file in tmp_path.glob("rank*")} == {f"rank{rank}": "3" for rank in range(3)}
