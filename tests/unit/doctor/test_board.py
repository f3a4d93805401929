"""Nodes that meet in a folder, as threads; what an earlier doctor left there is nobody."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from scaleup.doctor.board import DoctorBoard, Node


def node(rank: int) -> Node:
    return Node(rank, f"h{rank}", "boot", f"10.0.0.{rank}", 1000 + rank, {"torch": "2"})


def attend(folder: Path, own: Node, num_nodes: int, late: float = 0.0) -> dict[int, Node]:
    time.sleep(late)
    board = DoctorBoard(folder, own, num_nodes)
    others = board.gather(20)
    board.leave(20)
    return others


def test_all_meet_and_leave_nothing(tmp_path: Path) -> None:
    nodes, folder = [node(rank) for rank in range(4)], tmp_path / ".doctor-x"
    with ThreadPoolExecutor(4) as pool:
        met = list(pool.map(lambda own: attend(folder, own, 4, 0.2 * own.rank), nodes))
    for own, others in zip(nodes, met, strict=True):
        assert others == {other.rank: other for other in nodes if other != own}
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_doctor_left_is_nobody(tmp_path: Path) -> None:
    earlier = {"node": asdict(node(1)), "heard": {"0": "an older nonce"}, "is_done": False}
    (tmp_path / "1.json").write_text(json.dumps(earlier))
    begun = time.monotonic()
    board = DoctorBoard(tmp_path, node(0), 2)
    assert board.gather(0.5) == {}
    board.leave(20)
    assert time.monotonic() - begun < 10, "nobody waits for one who is not there"
    assert (tmp_path / "1.json").exists() and not (tmp_path / "0.json").exists()


def test_a_node_takes_the_place_of_what_it_left_earlier(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(json.dumps({"node": asdict(node(1)), "heard": {}, "is_done": True}))
    nodes = [node(0), node(1)]
    with ThreadPoolExecutor(2) as pool:
        met = list(pool.map(lambda own: attend(tmp_path, own, 2, 0.5 * own.rank), nodes))
    assert met == [{1: nodes[1]}, {0: nodes[0]}]


@pytest.mark.parametrize("text", ["", "[1]", '{"node": 1}', '{"node": {"rank": 1}, "heard": {}, "is_done": true}', "{"])
def test_what_cannot_be_read_is_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "1.json").write_text(text)
    assert DoctorBoard(tmp_path, node(0), 2).gather(0.2) == {}


def test_only_this_user_reads_the_nonce(tmp_path: Path) -> None:
    DoctorBoard(tmp_path, node(0), 2)
    assert (tmp_path / "0.json").stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        DoctorBoard(tmp_path / "file" / "meeting", node(0), 2)
