"""Nodes that are too much alike, or not alike enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from scaleup.doctor.board import Node
from scaleup.doctor.nodes import Place, attendance, unlike

ONE = Node(0, "h1", "boot-1", "10.0.0.1", 5000, {"torch": "2.13.0", "scaleup": "0.1.0"})
TWO = Node(1, "h2", "boot-2", "10.0.0.2", 5000, {"torch": "2.13.0", "scaleup": "0.1.0"})


def said(*nodes: Node, own_rank: int = 0) -> list[tuple[str, str]]:
    return [(found.level, found.what) for found in unlike(list(nodes), own_rank)]


def test_two_nodes_as_they_should_be() -> None:
    assert said(ONE, TWO) == [("ok", "host names and addresses differ, versions do not")]


def test_two_agents_of_one_machine_are_a_try() -> None:
    ((level, what),) = said(ONE, replace(ONE, rank=1, port=5001))
    assert level == "warn" and "two agents of one machine" in what


def test_one_name_for_two_machines() -> None:
    ((level, what),) = said(ONE, replace(TWO, host="h1"))
    assert level == "fail" and "node 0 (h1, 10.0.0.1) and node 1 (h1, 10.0.0.2) have the same host name" in what


def test_one_address_for_two_hosts() -> None:
    ((level, what),) = said(ONE, replace(TWO, address="10.0.0.1"))
    assert level == "fail" and "give the same address" in what
    assert said(replace(ONE, address=None), replace(TWO, address=None))[0][0] == "ok", "said elsewhere"


def test_other_versions() -> None:
    other = replace(TWO, versions={"torch": "2.12.0", "scaleup": "0.1.0"})
    assert said(ONE, other) == [("fail", "2.13.0 on node 0 (h1, 10.0.0.1), 2.12.0 on node 1 (h2, 10.0.0.2)")]


def test_each_node_tells_of_the_pairs_it_is_in() -> None:
    third = Node(2, "h2", "boot-3", "10.0.0.3", 5000, TWO.versions)
    assert said(ONE, TWO, third)[0][0] == "ok"
    assert said(ONE, TWO, third, own_rank=2)[0][0] == "fail"


def test_who_did_not_come() -> None:
    found = list(attendance(Place(0, 3, wait=5), {1: TWO}, Path("/runs/.doctor-x")))
    assert [each.level for each in found] == ["fail"]
    assert "node 2 was not seen in /runs within 5 s" in found[0].what and "all nodes share" in found[0].remedy
    assert [each.level for each in attendance(Place(0, 2), {1: TWO}, Path("/runs/.doctor-x"))] == ["ok"]
