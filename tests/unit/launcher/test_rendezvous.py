"""Where nodes meet, and what their processes are told of the network."""

from __future__ import annotations

import socket
from typing import Any, ClassVar

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import load_mapping
from scaleup.config.run import RunConfig
from scaleup.errors import ScaleupError
from scaleup.launcher.addresses import interface_towards, interfaces, is_loopback, own_address
from scaleup.launcher.rendezvous import (
    Rendezvous,
    address_problems,
    named_ports,
    network_environment,
    new_rendezvous,
    port_problems,
    problems_here,
    rendezvous_arguments,
)
from tests.cli import differing
from tests.unit.launcher.configs import config_of, ppo_of
from tests.unit.launcher.plans import group, plan_of

TWO = {"num_processes": 2, "num_nodes": 2}


class TestAddresses:
    def test_every_host_has_a_loopback(self) -> None:
        assert interfaces()["lo"] == "127.0.0.1"
        assert own_address("lo") == "127.0.0.1"
        assert interface_towards("127.0.0.1") == "lo"

    def test_the_own_one_can_be_bound_and_is_some_interfaces(self) -> None:
        own = own_address()
        with socket.create_server((own, 0)):
            pass
        assert own in interfaces().values() or is_loopback(own)
        assert interface_towards(own) in interfaces()

    def test_of_an_interface_that_is_not_there(self) -> None:
        with pytest.raises(ScaleupError, match=r"parallel.interface: .* has no interface 'ib7' .* -> it has .*lo"):
            own_address("ib7")

    def test_nothing_leads_to_a_name_of_nobody(self) -> None:
        assert interface_towards("no-such-host.invalid") is None


class TestRendezvous:
    def test_one_node_needs_none(self, run: RunFolder) -> None:
        assert new_rendezvous(plan_of(run)) is None
        assert rendezvous_arguments(group(), None, 0) == []

    def test_is_found_anew_each_time(self, run: RunFolder) -> None:
        plan = plan_of(run, group(**TWO))
        one, other = new_rendezvous(plan), new_rendezvous(plan)
        assert one is not None and other is not None
        assert one.address == other.address == own_address()
        assert one.port != other.port

    def test_or_is_what_the_config_says(self, run: RunFolder) -> None:
        assert new_rendezvous(plan_of(run, group(**TWO, main_address="n0", main_port=7))) == Rendezvous("n0", 7)
        found = new_rendezvous(plan_of(run, group(**TWO, interface="lo")))
        assert found is not None and found.address == "127.0.0.1"

    def test_also_where_only_the_bridge_crosses_nodes(self, run: RunFolder) -> None:
        reward = group(name="reward", serves=True, first_node=1)
        assert new_rendezvous(plan_of(run, group(), reward)) is not None
        assert rendezvous_arguments(reward, Rendezvous("n0", 7), 1) == []

    def test_ranks_count_from_the_groups_first_node(self) -> None:
        arguments = rendezvous_arguments(group(**TWO, first_node=3), Rendezvous("n0", 7), 4)
        place = ["--machine_rank", "1", "--main_process_ip", "n0", "--main_process_port", "7"]
        assert arguments == [*place, "--rdzv_conf", "timeout=600"]

    def test_processes_look_for_one_another_as_long_as_a_collective_waits(self) -> None:
        """And never longer than by themselves."""
        for seconds, patience in ((60, 60), (1800, 600)):
            arguments = rendezvous_arguments(group(**TWO, timeout_seconds=seconds), Rendezvous("n0", 7), 0)
            assert arguments[-1] == f"timeout={patience}"


class TestWhatIsNotThere:
    @pytest.mark.parametrize("host", ["no-such-host.invalid", "localhost:29500", "a..b", "x" * 70, "::1", "256.1.1.1"])
    def test_a_main_address(self, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        (problem,) = address_problems(config_of({"parallel": {"main_address": host}}))
        assert problem.where == "parallel.main_address" and repr(host) in problem.what

    def test_a_service(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        reward = {"placement": "http", "url": "http://no-such-host.invalid:8000/score"}
        (problem,) = address_problems(ppo_of(reward))
        assert problem.where == "reward.url" and "'no-such-host.invalid' stands for no address" in problem.what
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:3128")  # then the proxy finds it
        assert list(address_problems(ppo_of(reward))) == []
        monkeypatch.setenv("no_proxy", ".invalid")
        assert [problem.where for problem in address_problems(ppo_of(reward))] == ["reward.url"]

    def test_interfaces(self) -> None:
        config = ppo_of({"model": {"path": "m"}, "parallel": {"interface": "ib7"}}, {"parallel": {"interface": "ib8"}})
        found = {problem.where: problem for problem in address_problems(config)}
        assert list(found) == ["parallel.interface", "reward.parallel.interface"]
        assert "has no interface 'ib8' with an address" in found["parallel.interface"].what
        assert "lo" in found["parallel.interface"].remedy

    def test_on_a_further_node(self, run: RunFolder) -> None:
        plan = plan_of(run, group(**TWO, interface="ib7"))
        found = list(problems_here(plan, Rendezvous("no-such-host.invalid", 1), 1))
        assert [problem.where for problem in found] == ["parallel.main_address", "parallel.interface"]
        assert list(problems_here(plan_of(run, group(**TWO)), Rendezvous("127.0.0.1", 1), 1)) == []

    def test_what_is_there(self) -> None:
        config = config_of({"parallel": {"main_address": "localhost", "interface": "lo"}})
        assert list(address_problems(config)) == []


class TestNetworkEnvironment:
    def test_the_interface_that_the_config_names(self) -> None:
        names = {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "ib0"}
        assert network_environment(group(interface="ib0"), None) == names

    def test_else_gloo_goes_where_the_first_node_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
        assert network_environment(group(**TWO), Rendezvous("127.0.0.1", 7)) == {"GLOO_SOCKET_IFNAME": "lo"}
        assert network_environment(group(), None) == {}

    def test_or_where_the_user_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth9")
        assert network_environment(group(**TWO), Rendezvous("127.0.0.1", 7)) == {}


class TestPorts:
    RUN: ClassVar[dict[str, Any]] = {"stage": "ppo", "name": "x", "model": {"path": "m"}, "data": {}}
    RUN |= {"ppo": {"num_rollouts": 1}, "reward": {"model": {"path": "r"}, "own_nodes": True}}

    def config(self, **changes: Any) -> RunConfig:
        config = load_mapping(differing(self.RUN, changes)).config
        assert config is not None
        return config

    def test_those_in_use(self) -> None:
        """On one node too: `accelerate launch` listens on it there."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            config = self.config(**{"parallel.main_port": port, "reward.bridge_port": port})
            assert [problem.where for problem in port_problems(config)] == ["parallel.main_port", "reward.bridge_port"]
        assert list(port_problems(config)) == []

    def test_are_those_of_the_node(self) -> None:
        config = self.config(**{"parallel.main_port": 1001, "reward.bridge_port": 1002, "reward.parallel.main_port": 3})
        assert list(named_ports(config)) == [("parallel.main_port", 1001), ("reward.bridge_port", 1002)]
        assert list(named_ports(config, 1)) == [("reward.parallel.main_port", 3)]
        beside = self.config(**{"reward.own_nodes": False, "reward.parallel.main_port": 3})
        assert list(named_ports(beside)) == [("reward.parallel.main_port", 3)]
