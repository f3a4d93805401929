"""GroupPlan -> the Accelerate config file that starts the group, also by hand."""

from __future__ import annotations

from typing import Any

import yaml

from scaleup.plan.types import GroupPlan

ENGINE_SETTINGS: dict[str, Any] = {
    "DEEPSPEED": {"deepspeed_config": {"zero3_init_flag": False, "deepspeed_multinode_launcher": "standard"}},
    "FSDP": {"fsdp_config": {"fsdp_version": 2}},
}
"""Enough for `accelerate launch` to start every process under its agent, also a single one, each node its own
(`standard`: not over ssh from the first). The settings themselves stand in the plan, which the worker hands to
Accelerate."""


def accelerate_settings(group: GroupPlan, node_rank: int = 0) -> dict[str, Any]:
    """What `accelerate launch --config_file` reads.

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
        "main_process_ip": group.main_address,
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


def accelerate_yaml(group: GroupPlan) -> str:
    return yaml.safe_dump(accelerate_settings(group), sort_keys=False)
