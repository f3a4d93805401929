"""This module examines what this host is called, where it is reached, and whether the ports that a run names are
free."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from scaleup.config.run import RunConfig
from scaleup.doctor.finding import Finding, fail, ok, warn
from scaleup.launcher.addresses import interfaces, is_loopback, own_address
from scaleup.launcher.rendezvous import address_problems, named_hosts, named_ports, port_trouble

NETWORK, DOWN = Path("/sys/class/net"), ("down", "lowerlayerdown")
INTERFACE = "parallel.interface"
WITH_INTERFACE = f"name the network interface between the nodes: {INTERFACE}"


def network_findings(interface: str | None, num_nodes: int | None) -> Iterator[Finding]:
    """Check interfaces, host name and address. `num_nodes` is the run's, None without one. Raises ScaleupError if the
    interface does not exist."""
    known = interfaces()
    yield ok("interfaces", ", ".join(f"{name} {address}" for name, address in known.items()) or "none")
    address = own_address(interface)
    yield host_name_finding(socket.gethostname(), address, num_nodes)
    place = next((name for name, its in known.items() if its == address), None)
    if not is_loopback(address) and (state := _state(place)) in DOWN:
        yield fail("address", f"{address} is {place}'s, which is {state}", f"bring it up, or {WITH_INTERFACE}")
    elif not is_loopback(address):
        yield ok("address", f"to other hosts this one is {address}" + (f", on {place}" if place else ""))
    elif num_nodes is not None and num_nodes > 1:
        yield fail("address", f"{address} is the loopback's: no other node reaches this one", WITH_INTERFACE)
    else:
        yield ok("address", f"{address}: this host has no way out, which one node needs none of")


def _state(interface: str | None) -> str:
    """Return the kernel's state of an interface: up, down, lowerlayerdown (no cable), or unknown, as of devices that
    are always up."""
    with suppress(OSError):
        return (NETWORK / (interface or "") / "operstate").read_text().strip()
    return "unknown"


def host_name_finding(name: str, own: str, num_nodes: int | None) -> Finding:
    """Check what the host's name resolves to. `own` is the address that runs on several nodes use; a loopback there is
    a finding of its own."""
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        what = f"{name} does not resolve: {error.strerror}"
        return warn("host name", what, "add it to /etc/hosts, or to the name server")
    if not is_loopback(address) or num_nodes == 1:
        return ok("host name", f"{name} is {address}")
    return ok("host name", f"{name} is {address}, where other nodes do not find it; runs on several nodes use {own}")


def address_findings(config: RunConfig, node_rank: int) -> Iterator[Finding]:
    """Checks the hosts that a run's processes connect to, by name, and the interfaces of a reward group; the policy's
    is a row of its own."""
    problems = {problem.where: problem for problem in address_problems(config)}
    yield from (fail(each.where, each.what, each.remedy) for each in problems.values() if each.where != INTERFACE)
    for key, host in named_hosts(config):
        if key in problems:
            continue
        address = socket.gethostbyname(host)
        what = f"{host} is {address}"
        if key == "parallel.main_address" and node_rank == 0 and not _is_own(address):
            yield warn(key, f"{what}, which is none of this host's addresses", "name the first node, which runs this")
        else:
            yield ok(key, what)


def _is_own(address: str) -> bool:
    return is_loopback(address) or address in interfaces().values()


def port_findings(config: RunConfig, node_rank: int) -> Iterator[Finding]:
    """Check the ports that a run listens on at this node."""
    return (port_finding(key, port) for key, port in named_ports(config, node_rank))


def port_finding(key: str, port: int) -> Finding:
    if not (trouble := port_trouble(port)):
        return ok(key, f"port {port} is free")
    who = _listener(port)
    what = f"port {port} of {socket.gethostname()} cannot be used: {trouble}" + (f" by {who}" if who else "")
    return fail(key, what, f"end that process, choose another port, or leave {key} out: a free one is taken then")


def _listener(port: int) -> str:
    """Return the process that listens there, if this user may see it; else nothing."""
    with suppress(OSError, psutil.Error):
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid is not None:
                return f"{psutil.Process(each.pid).name()} (process {each.pid})"
    return ""
