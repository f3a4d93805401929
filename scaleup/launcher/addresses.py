"""This module reads this host's addresses and network interfaces (IPv4), without torch."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress

import psutil

from scaleup.errors import ScaleupError

ELSEWHERE = "198.51.100.1"
"""Is an address that no host has (RFC 5737). Nothing is sent: the kernel only says which address it would use."""


def interfaces() -> dict[str, str]:
    """Return the first address of each interface that has one."""
    every = {
        name: [each.address for each in addresses if each.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }
    return {name: addresses[0] for name, addresses in every.items() if addresses}


def own_address(interface: str | None = None) -> str:
    """Return the address at which other hosts reach this one: the interface's, else what the host's name resolves to,
    else that of the way out, else of any interface, else the loopback's.

    Raises ScaleupError if the interface does not exist."""
    if interface is not None:
        return _address_of(interface)
    with suppress(OSError):
        if not is_loopback(named := socket.gethostbyname(socket.gethostname())):
            return named
    with suppress(OSError):
        return _address_towards(ELSEWHERE)
    return next((address for address in interfaces().values() if not is_loopback(address)), "127.0.0.1")


def interface_towards(host: str) -> str | None:
    """Return the interface through which this host reaches another one (or itself); None if it cannot."""
    try:
        own = _address_towards(socket.gethostbyname(host))
    except (OSError, ValueError):
        return None
    return next((name for name, address in interfaces().items() if address == own), None)


def address_trouble(host: str) -> str:
    """Returns why a name or an address stands for no host, e.g. `Name or service not known`; empty where it does."""
    try:
        socket.gethostbyname(host)
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:  # also UnicodeError: an empty label, or one that is too long
        return str(error)
    return ""


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
