"""This module examines several nodes together: who came, who is who, who reaches whom."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import scaleup
from scaleup.doctor.board import DoctorBoard, Node, boot_id
from scaleup.doctor.finding import Finding, fail, ok, warn
from scaleup.doctor.network import WITH_INTERFACE
from scaleup.doctor.packages import version_of
from scaleup.doctor.reach import Listener, reach_findings
from scaleup.errors import ScaleupError
from scaleup.launcher.addresses import own_address

COMPARED = ("torch", "accelerate", "deepspeed", "transformers", "peft")
LEAVE_SECONDS = 30.0
"""Is how many seconds a node that is done waits for the others: their calls time out in a few seconds."""


@dataclass(frozen=True)
class Place:
    """Tells which of how many nodes this is."""

    node_rank: int = 0
    num_nodes: int = 1
    interface: str | None = None
    port: int | None = None
    """Is the port to listen on; None: anywhere."""
    wait: float = 60.0
    """Counts the seconds that the other nodes may take to come."""


def node_findings(place: Place, folder: Path) -> Iterator[Finding]:
    """Meet the other nodes in `folder`, which is made and removed. Its parent stays: who removes it might take it from
    under a slower node's checks."""
    listener, own, trouble = _listen(place)
    yield from trouble
    try:
        board = DoctorBoard(folder, own, place.num_nodes)
        others = board.gather(place.wait)
        yield from attendance(place, others, folder)
        yield from unlike([own, *others.values()], own.rank)
        yield from reach_findings(own, list(others.values()))
        board.leave(LEAVE_SECONDS)
    except OSError as error:
        what = f"{own} cannot meet the others in {folder}: {error.strerror}"
        yield fail("nodes", what, "set runs_dir to a folder that all nodes share and can write")
    finally:
        if listener is not None:
            listener.close()


def _listen(place: Place) -> tuple[Listener | None, Node, list[Finding]]:
    """Listen on the address that a run would use. A node that cannot goes to the board all the same, and says so."""
    versions = {name: version_of(name) or "none" for name in COMPARED} | {"scaleup": scaleup.__version__}
    node = Node(place.node_rank, socket.gethostname(), boot_id(), None, None, versions)
    try:
        node = Node(**(vars(node) | {"address": own_address(place.interface)}))
    except ScaleupError:
        return None, node, []  # the check of the address reports it
    assert node.address is not None
    for port in dict.fromkeys((place.port or 0, 0)):  # a port that is taken is another check's business
        with suppress(OSError):
            listener = Listener(node.address, port, node.rank, node.nonce)
            return listener, Node(**(vars(node) | {"port": listener.port})), []
    what = f"{node} cannot listen at {node.address}: is that interface up?"
    return None, node, [fail("address", what, f"bring it up, or {WITH_INTERFACE}")]


def attendance(place: Place, others: dict[int, Node], folder: Path) -> Iterator[Finding]:
    missing = [rank for rank in range(place.num_nodes) if rank != place.node_rank and rank not in others]
    for rank in missing:
        what = f"node {rank} was not seen in {folder.parent} within {place.wait:g} s"
        remedy = "set runs_dir to a file system that all nodes share, and start the doctor on each of them at once"
        yield fail("nodes", what, remedy)
    if not missing:
        yield ok("nodes", f"all {place.num_nodes} met in {folder.parent}, which they share")


def unlike(nodes: list[Node], own_rank: int) -> Iterator[Finding]:
    """Find nodes that cannot be told apart, or that run other versions. Each node reports the pairs it is in."""
    findings = list(_alike(nodes, own_rank))
    own = next(node for node in nodes if node.rank == own_rank)
    for other in nodes:
        different = [name for name in own.versions if own.versions[name] != other.versions.get(name)]
        for name in different:
            what = f"{own.versions[name]} on {own}, {other.versions.get(name)} on {other}"
            findings.append(fail(name, what, "install the same versions on all nodes"))
    yield from findings or [ok("who is who", "host names and addresses differ, versions do not")]


def _alike(nodes: list[Node], own_rank: int) -> Iterator[Finding]:
    for one, other in combinations(sorted(nodes, key=lambda node: node.rank), 2):
        if own_rank not in (one.rank, other.rank):
            continue
        same_host, same_address = one.host == other.host, one.address == other.address and one.address is not None
        if same_host and one.boot == other.boot:
            what = f"{one} and {other} are two agents of one machine"
            yield warn("who is who", what, "on purpose, for a try; else start one on each node")
        elif same_host:
            what = f"{one} and {other} have the same host name, by which processes are told apart"
            yield fail("who is who", what, "give each node a name of its own")
        elif same_address:
            remedy = f"{WITH_INTERFACE}: a bridge of containers has the same address everywhere"
            yield fail("who is who", f"{one} and {other} give the same address", remedy)
