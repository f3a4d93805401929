"""Decisions are on the disk at once, outlive a crash, and are what their kind may be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleup.errors import ScaleupError
from scaleup.labelling.labels import KINDS, Decision, LabelFile, check_name, checked_ranks, read_labels
from tests.unit.labelling.made import decision, items

THREE = items(3).items


def test_what_was_decided_is_read_again_and_an_undo_brings_back_what_was_before(tmp_path: Path) -> None:
    with LabelFile(tmp_path, "ann", THREE) as file:
        file.append(decision(0, "choice", (1, 2)), {"seconds": 1.5})
        file.append(decision(0, "tie", (1, 1)), {})
        file.append(decision(1, "neither"), {})
        assert file.undo() == 1 and file.undo() == 0
        file.append(decision(2, "choice", (2, 1), (1, 0)), {})
    expected = {0: decision(0, "choice", (1, 2)), 2: decision(2, "choice", (2, 1), (1, 0))}
    assert read_labels(tmp_path, THREE) == {"ann": expected}
    with LabelFile(tmp_path, "ann", THREE) as file:
        assert file.decisions == expected
        assert [file.undo(), file.undo(), file.undo()] == [2, 0, None]
    assert read_labels(tmp_path, THREE) == {}


@given(cut=st.integers(1, 60))
def test_a_line_that_was_cut_off_is_passed_over_and_mended(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    with LabelFile(folder, "ann", THREE) as file:
        file.append(decision(0, "choice", (1, 2)), {})
        whole = file.path.read_bytes()
        file.append(decision(1, "choice", (2, 1)), {})
        size = file.path.stat().st_size
    os.truncate(file.path, max(len(whole), size - cut))
    assert list(read_labels(folder, THREE)["ann"]) == [0], "another labeller reads before it is mended"
    with LabelFile(folder, "ann", THREE) as file:
        assert file.path.read_bytes() == whole
        file.append(decision(2, "neither"), {})
    assert list(read_labels(folder, THREE)["ann"]) == [0, 2]


def test_a_decision_that_the_disk_does_not_take_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LabelFile(tmp_path, "ann", THREE) as file:
        file.append(decision(0, "choice", (1, 2)), {})
        before, write = file.path.read_bytes(), os.write
        with monkeypatch.context() as full:
            full.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:9]))
            with pytest.raises(ScaleupError, match=f"cannot be written: {os.strerror(errno.ENOSPC)}"):
                file.append(decision(1, "neither"), {})
        assert file.path.read_bytes() == before and list(file.decisions) == [0]
        file.append(decision(1, "neither"), {})
    assert list(read_labels(tmp_path, THREE)["ann"]) == [0, 1]


def test_lines_that_are_no_decisions_are_told_of_all_labellers(tmp_path: Path) -> None:
    good = '{"id": 0, "kind": "tie", "ranks": [1, 1], "shown": [0, 1]}\n'
    (tmp_path / "labels-ann.jsonl").write_text(good + "{\n" + good.replace("tie", "tied") + '{"undo": 2}\n')
    (tmp_path / "labels-ben.jsonl").write_text(good.replace('"id": 0', '"id": 9') + good.replace("[0, 1]", "[0, 0]"))
    with pytest.raises(ScaleupError) as caught:
        read_labels(tmp_path, THREE)
    assert [f"{Path(each.where).name} {each.what}".partition(" (")[0] for each in caught.value.problems] == [
        "labels-ann.jsonl:2 is no decision: Expecting property name enclosed in double quotes: line 2 column 1",
        "labels-ann.jsonl:3 is no decision: kind is none of choice, ranking, tie, neither",
        "labels-ann.jsonl:4 is no decision: the last decision before it is not of that item",
        "labels-ben.jsonl:1 is no decision: there is no item 9",
        "labels-ben.jsonl:2 is no decision: shown is no order of the item's answers",
    ]


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        ("choice", [1, 1, 2]),
        ("choice", [1, 2, 3]),
        ("choice", [2, 2, 2]),
        ("choice", None),
        ("ranking", [1, 3, 4]),
        ("ranking", [0, 1, 2]),
        ("ranking", [1, 1, 1]),
        ("ranking", [1, 2]),
        ("ranking", [True, 2, 3]),
        ("tie", [1, 1, 2]),
        ("neither", [1, 1, 1]),
        ("best", [1, 2, 2]),
        (["choice"], [1, 2, 2]),
    ],
)
def test_ranks_belong_to_their_kind(kind: object, ranks: object) -> None:
    with pytest.raises(ValueError):
        checked_ranks(kind, ranks, 3)


@given(st.sampled_from(KINDS), st.lists(st.integers(1, 4), min_size=2, max_size=4))
def test_preferences_of_a_decision_are_those_of_its_ranks(kind: str, ranks: list[int]) -> None:
    try:
        checked = checked_ranks(kind, ranks, len(ranks))
    except ValueError:
        return
    made = Decision(0, kind, checked, tuple(range(len(ranks))))
    for one in range(len(ranks)):
        for other in range(len(ranks)):
            preferred, back = made.prefers(one, other), made.prefers(other, one)
            assert (preferred is None) == (back is None) and (preferred is None or preferred == -back)
            if ranks[one] < ranks[other]:
                assert preferred == 1
    if kind == "choice" and len(ranks) > 2:
        losers = [at for at in range(len(ranks)) if at != made.best]
        assert made.prefers(*losers[:2]) is None, "a choice says nothing of the others"


@pytest.mark.parametrize("name", ["", ".", "../x", "a b", "a/b", "-x", "ä", "x" * 65, "a\n"])
def test_names_that_are_no_files_are_refused(name: str) -> None:
    with pytest.raises(ScaleupError):
        check_name(name)
    check_name("Ann.B-2_c")
