"""A plan goes in; a run folder that any node can start from comes out: config.yaml, plan.json and a launch file a
group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import scaleup
from scaleup.artifacts.bridge_file import new_bridge
from scaleup.artifacts.data_file import RunData
from scaleup.artifacts.files import write_json, write_text
from scaleup.artifacts.run_folder import RunFolder, unwritable
from scaleup.config.load import dump
from scaleup.config.run import RunConfig
from scaleup.errors import ScaleupError
from scaleup.launcher.addresses import own_address
from scaleup.launcher.rendezvous import Rendezvous
from scaleup.plan.lineage import lineage_of
from scaleup.plan.types import GeneratorPlan, GroupPlan, Plan

ENGINE_SETTINGS: dict[str, Any] = {
    "DEEPSPEED": {"deepspeed_config": {"zero3_init_flag": False, "deepspeed_multinode_launcher": "standard"}},
    "FSDP": {"fsdp_config": {"fsdp_version": 2}},
}
"""Suffices for `accelerate launch` to start every process under its agent, also a single one, each node its own
(`standard`: not over ssh from the first). The settings themselves stand in the plan, which the worker hands to
Accelerate."""


@contextmanager
def written(run: RunFolder) -> Iterator[None]:
    """Turn an OSError of what must be written before anything starts into a ScaleupError."""
    try:
        yield
    except OSError as error:
        raise ScaleupError(unwritable(run.path, error.strerror or str(error))) from error


def prepare_run(run: RunFolder, config: RunConfig, plan: Plan, data: RunData | None = None) -> None:
    """Write the run folder, or bring that of an unfinished run up to date; `data` is what the run's rows are known
    by."""
    run.path.mkdir(parents=True, exist_ok=True)
    write_text(run.config_file, dump(config))  # first: it is what makes the folder this run's
    if data is not None:
        data.save(run.data_file)
        write_json(run.lineage_file, lineage_of(config, data).model_dump(mode="json"))
    plan.save(run.plan_file)
    run.resumable_file.unlink(missing_ok=True)
    (run.path / "launch").mkdir(exist_ok=True)
    for group in plan.groups:
        write_launch_file(run, group)
    renew_bridges(run, plan, None)


def renew_bridges(run: RunFolder, plan: Plan, rendezvous: Rendezvous | None) -> None:
    """Write where the policy and each group that serves it meet from now on."""
    taken = {bridge.port for bridge in plan.bridges.values() if bridge.port is not None}
    for name, bridge in plan.bridges.items():
        address = bridge.address or (rendezvous.address if rendezvous else own_address(plan.groups[0].interface))
        made = new_bridge(address, bridge.port, name, taken)
        made.save(run.bridge_file(name))
        taken.add(made.port)


def accelerate_settings(group: GroupPlan, node_rank: int = 0) -> dict[str, Any]:
    """Return what `accelerate launch --config_file` reads.

    Several CPU processes are MULTI_GPU here on purpose: with MULTI_CPU or use_cpu, `accelerate launch` starts a single
    process a machine and says nothing. The worker's own Accelerator(cpu=True) then chooses gloo."""
    several = group.num_processes > 1
    kind = {"DEEPSPEED": "DEEPSPEED", "FSDP": "FSDP"}.get(group.distributed_type, "MULTI_GPU" if several else "NO")
    return {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": kind,
        "downcast_bf16": "no",
        "machine_rank": node_rank,
        "main_process_ip": group.main_address if group.num_nodes > 1 else None,
        "main_process_port": group.main_port or 0,
        "main_training_function": "main",
        "mixed_precision": group.mixed_precision,
        "num_machines": group.num_nodes,
        "num_processes": group.num_processes,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": group.device == "cpu" and kind == "NO",
        **ENGINE_SETTINGS.get(kind, {}),
    }


def write_launch_file(run: RunFolder, group: GroupPlan) -> None:
    """Write the Accelerate config file that starts the group, also by hand; for an engine, its settings."""
    if group.generator is not None:
        _write_engine_file(run, group, group.generator)
        return
    write_text(run.launch_file(group.name), yaml.safe_dump(accelerate_settings(group), sort_keys=False))


def _write_engine_file(run: RunFolder, group: GroupPlan, generator: GeneratorPlan) -> None:
    settings = {
        **generator.model_dump(exclude={"python"}),
        "tensor_parallel_size": group.num_processes,
        "device": group.device,
        "bridge": str(run.bridge_file(group.name)),
    }
    write_json(run.engine_file(group.name), settings)
    run.engine_path.mkdir(exist_ok=True)
    link, package = run.engine_path / "scaleup", Path(scaleup.__file__).parent
    if not link.is_symlink() or link.readlink() != package:
        link.unlink(missing_ok=True)
        link.symlink_to(package)
