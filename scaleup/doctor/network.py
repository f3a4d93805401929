"""What this host is called, where it is reached, and whether the ports that a run names are free."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from scaleup.config.schema import RunConfig
from scaleup.doctor.finding import Finding, fail, ok, warn
from scaleup.doctor.system import holders
from scaleup.launcher.addresses import interfaces, is_loopback, own_address
from scaleup.launcher.meeting import named_ports, port_trouble

NETWORK, DOWN = Path("/sys/class/net"), ("down", "lowerlayerdown")
WITH_INTERFACE = "name the network interface between the nodes: parallel.interface"


def network_findings(interface: str | None, num_nodes: int | None) -> Iterator[Finding]:
    """`num_nodes` of the run; None where there is none. Raises ScaleupError where there is no such interface."""
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
    """As the kernel has it: up, down, lowerlayerdown (no cable), or unknown, as of devices that are always up."""
    with suppress(OSError):
        return (NETWORK / (interface or "") / "operstate").read_text().strip()
    return "unknown"


def host_name_finding(name: str, own: str, num_nodes: int | None) -> Finding:
    """`own` is the address that runs on several nodes use; where it is a loopback, that is a finding of its own."""
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        what = f"{name} does not resolve: {error.strerror}"
        return warn("host name", what, "add it to /etc/hosts, or to the name server")
    if not is_loopback(address) or num_nodes == 1:
        return ok("host name", f"{name} is {address}")
    return ok("host name", f"{name} is {address}, where other nodes do not find it; runs on several nodes use {own}")


def port_findings(config: RunConfig, node_rank: int) -> Iterator[Finding]:
    """Of the ports that a run is to listen on at this node."""
    return (port_finding(key, port) for key, port in named_ports(config, node_rank))


def port_finding(key: str, port: int) -> Finding:
    if not (trouble := port_trouble(port)):
        return ok(key, f"port {port} is free")
    who = _listener(port)
    what = f"port {port} of {socket.gethostname()} cannot be used: {trouble}" + (f" by {who}" if who else "")
    return fail(key, what, f"end that process, choose another port, or leave {key} out: a free one is taken then")


def _listener(port: int) -> str:
    """The process that listens there, where this user may see it."""
    for file in ("tcp", "tcp6"):
        with suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/net/{file}").read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "0A":  # it listens
                    for pid in holders(f"socket:[{fields[9]}]"):
                        return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (process {pid})"
    return ""
