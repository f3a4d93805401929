"""This host's addresses and network interfaces (IPv4, Linux), read without torch."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress

from scaleup.errors import ScaleupError

SIOCGIFADDR = 0x8915
"""The kernel's question for an interface's address: netdevice(7)."""
ELSEWHERE = "198.51.100.1"
"""No host has it (RFC 5737). Nothing is sent: the kernel only says which address it would use."""


def interfaces() -> dict[str, str]:
    """Interfaces that have an address -> it."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                reply = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(reply[20:24])
    return found


def own_address(interface: str | None = None) -> str:
    """Under which other hosts reach this one: the interface's address, else what the host's name stands for, else that
    of the way out, else of any interface; the loopback's where there is no other.

    Raises ScaleupError where there is no such interface."""
    if interface is not None:
        return _address_of(interface)
    with suppress(OSError):
        if not is_loopback(found := socket.gethostbyname(socket.gethostname())):
            return found
    with suppress(OSError):
        return _address_towards(ELSEWHERE)
    return next((address for address in interfaces().values() if not is_loopback(address)), "127.0.0.1")


def interface_towards(host: str) -> str | None:
    """The interface that this host reaches another one (or itself) through; None where it cannot."""
    try:
        own = _address_towards(socket.gethostbyname(host))
    except OSError:
        return None
    return next((name for name, address in interfaces().items() if address == own), None)


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _address_of(interface: str) -> str:
    known = interfaces()
    if interface not in known:
        what = f"{socket.gethostname()} has no interface {interface!r} with an address"
        raise ScaleupError.of("parallel.interface", what, f"it has {', '.join(known)}")
    return known[interface]


def _address_towards(address: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((address, 9))
        own: str = asking.getsockname()[0]
        return own
