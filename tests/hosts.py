"""Several hosts on one machine: network namespaces joined by a bridge, each with a name and an address of its own.

For tests of what happens between nodes, through the real command line. They share the file system, as nodes of a
cluster do. Root, `ip` and Linux's network namespaces are needed: where they are missing tests are skipped, with the
reason."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

NETNS = Path("/etc/netns")
"""`ip netns exec` shows a namespace the files of its folder here in place of those in /etc."""
INTERFACE = "eth0"
AS_HOST = 'hostname "$0" && exec "$@"'


@dataclass(frozen=True)
class Host:
    """One namespace. `command` stays one process: what is started can be signalled, and waited for, by its id."""

    name: str
    address: str
    namespace: str
    interface: str = INTERFACE

    def command(self, *argv: str | Path) -> list[str]:
        """What runs `argv` on this host."""
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "bash", "-c", AS_HOST, self.name]
        return [*inside, *map(str, argv)]

    def start(self, *argv: str | Path, cwd: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*argv), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def unplug(self) -> None:
        """Its cable is out: nothing reaches it, and it reaches nobody."""
        _ip("-n", self.namespace, "link", "set", self.interface, "down")

    def plug_in(self) -> None:
        _ip("-n", self.namespace, "link", "set", self.interface, "up")


@contextmanager
def hosts(names: Sequence[str] = ("h1", "h2"), resolves_to_loopback: bool = False) -> Iterator[list[Host]]:
    """Hosts that know one another by name. With `resolves_to_loopback` each one's own name stands for 127.0.1.1, as on
    Debian. At the end whatever still runs on them is killed, and they are gone. Skips the test where they cannot be."""
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in ("ip", "unshare", "hostname")):
        pytest.skip("hosts of their own need root, ip, unshare and hostname")
    mark = secrets.token_hex(3)  # of this test: other tests may have hosts at the same time
    made = [Host(name, f"10.87.0.{place}", f"su{mark}-{name}") for place, name in enumerate(names, 1)]
    switch = f"su{mark}-sw"
    try:
        try:
            _add(switch)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in made:
            _plug(host, switch)
            _write_hosts(host, made, resolves_to_loopback)
        yield made
    finally:
        for namespace in (*(host.namespace for host in made), switch):
            _remove(namespace)


def _add(namespace: str) -> None:
    _ip("netns", "add", namespace)
    _ip("-n", namespace, "link", "set", "lo", "up")


def _plug(host: Host, switch: str) -> None:
    _add(host.namespace)
    port, cable = f"p{host.address.rpartition('.')[2]}", ("type", "veth", "peer", "name", host.interface)
    _ip("-n", switch, "link", "add", port, *cable, "netns", host.namespace)
    _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
    _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.interface)
    host.plug_in()


def _write_hosts(host: Host, all_hosts: Sequence[Host], resolves_to_loopback: bool) -> None:
    lines = ["127.0.0.1 localhost"]
    for each in all_hosts:
        is_own = each == host and resolves_to_loopback
        lines.append(f"{'127.0.1.1' if is_own else each.address} {each.name}")
    folder = NETNS / host.namespace
    folder.mkdir(parents=True)
    (folder / "hosts").write_text("\n".join(lines) + "\n")


def _remove(namespace: str) -> None:
    """The namespace, with all that runs in it. None of it is an error: a test may have failed anywhere."""
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for pid in listed.stdout.split():
        with suppress(OSError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
    shutil.rmtree(NETNS / namespace, ignore_errors=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True, timeout=30)
