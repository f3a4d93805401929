"""Names, addresses and ports of the host that the tests run on."""

from __future__ import annotations

import os
import socket

import pytest

from scaleup.doctor.finding import findings_of
from scaleup.doctor.network import address_findings, host_name_finding, network_findings, port_finding
from tests.unit.launcher.configs import config_of, ppo_of


def test_a_port_in_use_names_who_has_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = port_finding("parallel.main_port", port)
        assert found.level == "fail" and f"port {port} of {socket.gethostname()}" in found.what
        assert f"(process {os.getpid()})" in found.what and "another port" in found.remedy
    assert port_finding("parallel.main_port", port).level == "ok"


def test_a_port_that_was_in_use_is_free_at_once() -> None:
    """Connections that were just closed keep a port in TIME_WAIT, which is no reason to refuse it."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            pass
    assert port_finding("parallel.main_port", port).level == "ok"


def test_a_name_that_stands_for_the_loopback_is_not_what_runs_use() -> None:
    for num_nodes in (None, 2):
        found = host_name_finding("localhost", "10.0.0.1", num_nodes)
        assert found.level == "ok" and found.what.endswith("runs on several nodes use 10.0.0.1")
    assert host_name_finding("localhost", "10.0.0.1", 1).what == "localhost is 127.0.0.1"


def test_a_name_that_does_not_resolve() -> None:
    found = host_name_finding("no-such-host.invalid", "10.0.0.1", 1)
    assert found.level == "warn" and "does not resolve" in found.what


@pytest.mark.parametrize(("num_nodes", "level"), [(None, "ok"), (1, "ok"), (2, "fail")])
def test_the_loopback_reaches_no_other_node(num_nodes: int | None, level: str) -> None:
    found = {finding.name: finding for finding in network_findings("lo", num_nodes)}
    assert found["address"].level == level and "127.0.0.1" in found["address"].what
    assert "lo 127.0.0.1" in found["interfaces"].what


def test_an_interface_that_is_not_there_is_a_finding() -> None:
    found = findings_of("network", lambda: network_findings("nope0", 2))
    assert found[-1].level == "fail" and found[-1].name == "parallel.interface" and "nope0" in found[-1].what


@pytest.mark.parametrize(
    ("host", "level", "said"),
    [
        ("no-such-host.invalid", "fail", "stands for no address"),
        ("localhost", "ok", "localhost is 127.0.0.1"),
        ("198.51.100.1", "warn", "none of this host's addresses"),
    ],
)
def test_where_nodes_meet(host: str, level: str, said: str) -> None:
    (found,) = address_findings(config_of({"parallel": {"main_address": host}}), 0)
    assert (found.name, found.level) == ("parallel.main_address", level) and said in found.what


def test_another_host_is_no_finding_on_a_further_node() -> None:
    (found,) = address_findings(config_of({"parallel": {"main_address": "198.51.100.1"}}), 1)
    assert found.level == "ok"


def test_a_reward_groups_interface() -> None:
    (found,) = address_findings(ppo_of({"model": {"path": "m"}, "parallel": {"interface": "ib7"}}), 0)
    assert (found.name, found.level) == ("reward.parallel.interface", "fail")
