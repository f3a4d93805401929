"""This module decides where the processes of several nodes meet in one attempt: an address and a port of the first
node."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from scaleup.artifacts.bridge_file import free_port
from scaleup.config.run import RunConfig
from scaleup.errors import Problem
from scaleup.launcher.addresses import address_trouble, interface_towards, interfaces, own_address
from scaleup.plan.types import GroupPlan, Plan

LONGEST_MEETING = 600
"""Seconds that torchrun's processes look for one another where nothing else is said."""


@dataclass(frozen=True)
class Rendezvous:
    address: str
    port: int


def new_rendezvous(plan: Plan) -> Rendezvous | None:
    """Choose an address and a port of the first node, which this one is; None if all are on one node. Each attempt has
    its own: nothing of an earlier one answers there. Raises ScaleupError if the interface does not exist."""
    if plan.num_nodes == 1:
        return None
    first = plan.groups[0]
    address = first.main_address or own_address(first.interface)
    return Rendezvous(address, first.main_port or free_port("parallel.main_port"))


def rendezvous_arguments(group: GroupPlan, rendezvous: Rendezvous | None, node_rank: int) -> list[str]:
    """Return the arguments of `accelerate launch` that the group's launch file leaves out."""
    if group.num_nodes == 1 or rendezvous is None:
        return []
    place = ["--main_process_ip", rendezvous.address, "--main_process_port", str(rendezvous.port)]
    patience = min(LONGEST_MEETING, group.timeout_seconds)
    return ["--machine_rank", str(node_rank - group.first_node), *place, "--rdzv_conf", f"timeout={patience}"]


def network_environment(group: GroupPlan, rendezvous: Rendezvous | None) -> dict[str, str]:
    """Return the variables that name gloo's interface. By itself gloo takes the address that the host's name resolves
    to, which is a loopback on many machines: it gets the interface that leads to the first node."""
    if group.interface is not None:
        return {"GLOO_SOCKET_IFNAME": group.interface, "NCCL_SOCKET_IFNAME": group.interface}
    if rendezvous is None or "GLOO_SOCKET_IFNAME" in os.environ:
        return {}
    towards = interface_towards(rendezvous.address)
    return {"GLOO_SOCKET_IFNAME": towards} if towards else {}


def address_problems(config: RunConfig) -> Iterator[Problem]:
    """Yields refusals of hosts and interfaces that the config names and this host, the first, does not find."""
    yield from problems_of(named_hosts(config), named_interfaces(config))


def problems_here(plan: Plan, rendezvous: Rendezvous | None, node_rank: int) -> Iterator[Problem]:
    """Yields refusals of where an attempt's processes meet, and of interfaces, that a further node does not find."""
    hosts = [("parallel.main_address", rendezvous.address)] if rendezvous else []
    names = dict.fromkeys(group.interface for group in plan.groups if group.is_on(node_rank) and group.interface)
    yield from problems_of(hosts, [("parallel.interface", name) for name in names if name is not None])


def problems_of(hosts: Iterable[tuple[str, str]], names: Iterable[tuple[str, str]]) -> Iterator[Problem]:
    """Yields refusals of names that stand for no host where this is called, and of interfaces that are not there:
    processes would look for them for as long as they may wait for one another, and say so in their logs alone."""
    for key, host in hosts:
        if trouble := address_trouble(host):
            what = f"{host!r} stands for no address (IPv4) on {socket.gethostname()}: {trouble}"
            yield Problem(key, what, "mend the name, or write the address itself")
    for key, interface in names:
        if interface not in (known := interfaces()):
            what = f"{socket.gethostname()} has no interface {interface!r} with an address"
            yield Problem(key, what, f"it has {', '.join(known)}")


def named_hosts(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Returns the hosts that the config names and a run's processes connect to, each with its key. One behind a proxy
    is the proxy's to know."""
    if config.parallel.main_address is not None:
        yield "parallel.main_address", config.parallel.main_address
    for reward in config.reward_sources:
        url = urlsplit((reward.source.placement == "http" and reward.source.url) or "")
        if url.hostname and (url.scheme not in getproxies() or proxy_bypass(url.hostname)):
            yield f"{reward.key}.url", url.hostname


def named_interfaces(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Returns the interfaces that the config names, each with its key."""
    names: dict[str, str | None] = {"parallel.interface": config.parallel.interface}
    names |= {f"{reward.key}.parallel.interface": reward.source.parallel.interface for reward in config.reward_groups}
    return ((key, name) for key, name in names.items() if name is not None)


def named_ports(config: RunConfig, node_rank: int = 0) -> Iterator[tuple[str, int]]:
    """Return the ports that the config names and a run listens on at this node, each with its key."""
    ports = {"parallel.main_port": config.parallel.main_port if node_rank == 0 else None}
    for reward in config.reward_groups:
        key, source = reward.key, reward.source
        at = config.parallel.num_nodes if source.own_nodes else 0
        ports[f"{key}.bridge_port"] = source.bridge_port if node_rank == 0 else None
        ports[f"{key}.parallel.main_port"] = source.parallel.main_port if node_rank == at else None
    if config.generator_group is not None:
        ports["generator.bridge_port"] = config.generator_group.bridge_port if node_rank == 0 else None
    return ((key, port) for key, port in ports.items() if port is not None)


def port_trouble(port: int) -> str:
    """Return why nobody can listen there, e.g. `Address already in use`; empty if it is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trying:
        trying.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just closed is free
        try:
            trying.bind(("", port))  # nobody can connect: it does not listen
        except OSError as error:
            return error.strerror or str(error)
    return ""


def port_problems(config: RunConfig) -> Iterator[Problem]:
    """Refuse ports that are in use on the first node, before anything starts."""
    for key, port in named_ports(config):
        if trouble := port_trouble(port):
            what = f"port {port} of {socket.gethostname()} cannot be used: {trouble}"
            yield Problem(key, what, "leave it out, and a free one is found, or give another")
