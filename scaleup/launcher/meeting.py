"""Where the processes of several nodes meet in one attempt: an address and a port of the first node."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from scaleup.artifacts.bridge_file import free_port
from scaleup.config.schema import RunConfig
from scaleup.config.stages import PPOConfig
from scaleup.errors import Problem
from scaleup.launcher.addresses import interface_towards, own_address
from scaleup.plan.groups import has_reward_group
from scaleup.plan.types import GroupPlan, Plan


@dataclass(frozen=True)
class Meeting:
    address: str
    port: int


def new_meeting(plan: Plan) -> Meeting | None:
    """At the first node, which this one is; None where all are on one node. Each attempt has one of its own: nothing
    of an earlier one answers there. Raises ScaleupError for an interface that is not there."""
    if plan.num_nodes == 1:
        return None
    first = plan.groups[0]
    address = first.main_address or own_address(first.interface)
    return Meeting(address, first.main_port or free_port("parallel.main_port"))


def meeting_arguments(group: GroupPlan, meeting: Meeting | None, node_rank: int) -> list[str]:
    """For `accelerate launch`, beside the group's launch file."""
    if group.num_nodes == 1 or meeting is None:
        return []
    place = ["--main_process_ip", meeting.address, "--main_process_port", str(meeting.port)]
    return ["--machine_rank", str(node_rank - group.first_node), *place]


def network_environment(group: GroupPlan, meeting: Meeting | None) -> dict[str, str]:
    """What gloo and NCCL are told of interfaces. By itself gloo takes the address that the host's name stands for,
    which is a loopback on many machines: it is given the interface that leads to the first node."""
    if group.interface is not None:
        return {"GLOO_SOCKET_IFNAME": group.interface, "NCCL_SOCKET_IFNAME": group.interface}
    if meeting is None or "GLOO_SOCKET_IFNAME" in os.environ:
        return {}
    towards = interface_towards(meeting.address)
    return {"GLOO_SOCKET_IFNAME": towards} if towards else {}


def named_ports(config: RunConfig, node_rank: int = 0) -> Iterator[tuple[str, int]]:
    """Those that the config names and a run listens on at this node, each with its key."""
    asked = {"parallel.main_port": config.parallel.main_port if node_rank == 0 else None}
    if isinstance(config, PPOConfig) and has_reward_group(config):
        at = config.parallel.num_nodes if config.reward.own_nodes else 0
        asked["reward.bridge_port"] = config.reward.bridge_port if node_rank == 0 else None
        asked["reward.parallel.main_port"] = config.reward.parallel.main_port if node_rank == at else None
    return ((key, port) for key, port in asked.items() if port is not None)


def port_trouble(port: int) -> str:
    """Why nobody can listen there, e.g. `Address already in use`; empty where it is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trying:
        trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just closed is free
        try:
            trying.bind(("", port))  # nobody can connect: it does not listen
        except OSError as error:
            return error.strerror or str(error)
    return ""


def port_problems(config: RunConfig) -> Iterator[Problem]:
    """On the first node, before anything starts."""
    for key, port in named_ports(config):
        if trouble := port_trouble(port):
            what = f"port {port} of {socket.gethostname()} cannot be used: {trouble}"
            yield Problem(key, what, "leave it out, and a free one is found, or give another")
