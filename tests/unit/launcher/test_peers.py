"""What agents of several nodes tell one another; the test moves the clock, a beat at a time."""

from __future__ import annotations

import resource
from collections.abc import Callable

import pytest

from scaleup.artifacts.noticeboard import NoticeBoard
from scaleup.artifacts.run_folder import RunFolder
from scaleup.launcher import peers as nodes
from scaleup.launcher.ending import Ending, Part
from scaleup.launcher.peers import BEAT_SECONDS, GONE_BEATS, Newcomer, NodeGone, Nodes, rendezvous_of
from scaleup.launcher.ranks import WorkerState
from scaleup.launcher.rendezvous import Rendezvous


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    clock = [1000.0]
    monkeypatch.setattr("scaleup.launcher.peers.time.monotonic", lambda: clock[0])

    def tick() -> None:
        clock[0] += nodes.BEAT_SECONDS

    return tick


@pytest.fixture
def two(run: RunFolder, tick: Callable[[], None]) -> tuple[Nodes, Nodes]:
    """Node 0 and node 1, at an attempt."""
    attempt = run.new_attempt()
    pair = Nodes(run, 0, 2), Nodes(run, 1, 2)
    for node in pair:
        node.enter(attempt)
    return pair


def test_one_node_waits_for_nobody(run: RunFolder) -> None:
    alone = Nodes(run, 0, 1)
    alone.enter(attempt := run.new_attempt())
    assert not alone.another_failed()
    alone.end(Part())
    assert alone.parts() == []
    alone.close(Ending("finished"), 0)
    assert [file.name for file in attempt.nodes.iterdir()] == ["0.json"], "for people"


def test_a_failure_is_seen_with_the_next_beat(two: tuple[Nodes, Nodes], tick: Callable[[], None]) -> None:
    first, second = two
    assert not first.another_failed()
    second.end(Part("group policy ended with exit code 1"))
    tick()
    assert first.another_failed()


def test_a_part_that_ended_well_ends_nobody(two: tuple[Nodes, Nodes], tick: Callable[[], None]) -> None:
    first, second = two
    second.end(Part())
    tick()
    assert not first.another_failed()


def test_parts_are_whole_once_all_have_ended(two: tuple[Nodes, Nodes], tick: Callable[[], None]) -> None:
    first, second = two
    first.end(Part())
    assert first.parts() is None
    second.end(Part("x", signalled=True))
    tick()
    assert first.parts() == [Part("x", signalled=True)]


def test_the_next_attempt_begins_when_node_0_says_so(
    run: RunFolder, two: tuple[Nodes, Nodes], tick: Callable[[], None]
) -> None:
    first, second = two
    assert second.next_attempt() is None
    attempt = run.new_attempt()
    tick()
    assert second.next_attempt() is None
    first.enter(attempt)
    tick()
    assert second.next_attempt() == attempt


def test_the_final_ending(two: tuple[Nodes, Nodes], tick: Callable[[], None]) -> None:
    first, second = two
    assert second.final_ending() is None
    first.close(Ending("failed", "x", final=True), 3)
    tick()
    assert second.final_ending() == (Ending("failed", "x", final=True), 3)
    for _ in range(GONE_BEATS + 5):  # it says no more after it
        tick()
        assert second.final_ending() is not None


def test_an_agent_that_no_longer_beats_is_gone(two: tuple[Nodes, Nodes], tick: Callable[[], None]) -> None:
    first, second = two
    for _ in range(GONE_BEATS + 5):
        tick()
        assert not first.another_failed() and not second.another_failed()
    with pytest.raises(NodeGone, match="node 1: its agent gave no sign of life for 60 s"):
        for _ in range(GONE_BEATS + 5):
            tick()
            first.another_failed()


def test_one_that_was_not_started_yet_is_not_missed_until_it_must_be_there(
    run: RunFolder, tick: Callable[[], None]
) -> None:
    first = Nodes(run, 0, 2)
    first.enter(run.new_attempt())
    for _ in range(GONE_BEATS * 3):
        tick()
        assert not first.another_failed()
    first.end(Part("x"))
    with pytest.raises(NodeGone):
        for _ in range(GONE_BEATS + 5):
            tick()
            first.parts()


def test_a_file_system_that_hangs_is_nobodys_death(
    two: tuple[Nodes, Nodes], tick: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = two
    assert not first.another_failed()

    def fails(*arguments: object) -> None:
        raise OSError("stale file handle")

    monkeypatch.setattr("scaleup.artifacts.noticeboard.write_json", fails)
    for _ in range(GONE_BEATS * 2):
        tick()
        assert not first.another_failed()


def test_a_full_disk_ends_no_agent(run: RunFolder, tick: Callable[[], None]) -> None:
    """What could not be said is said with the next beat."""
    attempt = run.new_attempt()
    first, second = Nodes(run, 0, 2), Nodes(run, 1, 2)
    first.enter(attempt)
    second.enter(attempt)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        second.end(Part("group policy ended with exit code 1"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert first.parts() is None
    tick()
    second.absent()
    tick()
    assert first.parts() == [Part("group policy ended with exit code 1")]


class TestNewcomer:
    def test_waits_for_a_sign_of_life(self, run: RunFolder, tick: Callable[[], None]) -> None:
        first = Nodes(run, 0, 2)
        first.enter(attempt := run.new_attempt())
        newcomer = Newcomer(run, GONE_BEATS * BEAT_SECONDS)
        assert newcomer.attempt() is None
        tick()
        first.another_failed()  # beats
        assert newcomer.attempt() == attempt

    def test_or_for_a_new_attempt(self, run: RunFolder) -> None:
        Nodes(run, 0, 2).enter(run.new_attempt())
        newcomer = Newcomer(run, GONE_BEATS * BEAT_SECONDS)
        attempt = run.new_attempt()
        assert newcomer.attempt() is None
        Nodes(run, 0, 2).enter(attempt)
        assert newcomer.attempt() == attempt

    def test_not_for_ever(self, run: RunFolder, tick: Callable[[], None]) -> None:
        Nodes(run, 0, 2).enter(run.new_attempt())
        newcomer = Newcomer(run, GONE_BEATS * BEAT_SECONDS)
        with pytest.raises(NodeGone, match="node 0"):
            for _ in range(GONE_BEATS + 5):
                tick()
                newcomer.attempt()


class TestWhatTheyTell:
    def test_where_to_meet(self, run: RunFolder) -> None:
        attempt = run.new_attempt()
        Nodes(run, 1, 2).enter(attempt)
        assert rendezvous_of(attempt) is None
        Nodes(run, 0, 2).enter(attempt, Rendezvous("10.0.0.1", 7))
        assert rendezvous_of(attempt) == Rendezvous("10.0.0.1", 7)

    def test_a_signal_to_one(self, run: RunFolder, tick: Callable[[], None]) -> None:
        """And it is still said after the next beat."""
        first, second = Nodes(run, 0, 2), Nodes(run, 1, 2)
        for each in (first, second):
            each.enter(run.newest_attempt() or run.new_attempt())
        assert not first.another_stops()
        second.tell_to_stop()
        for _ in range(2):
            tick()
            second.another_stops()
            assert first.another_stops()

    def test_who_is_there_and_who_has_ended(self, run: RunFolder, tick: Callable[[], None]) -> None:
        first, second = Nodes(run, 0, 3), Nodes(run, 1, 3)
        first.enter(attempt := run.new_attempt())
        assert first.absent() == [1, 2]
        second.enter(attempt)
        tick()
        assert first.absent() == [2]
        assert not first.have_ended([1])
        second.end(Part())
        tick()
        assert first.have_ended([1]) and not first.have_ended([1, 2])


class TestManyNodes:
    """Node 0 reads all notices and passes on what concerns everybody; the others read its notice alone."""

    @pytest.fixture
    def three(self, run: RunFolder, tick: Callable[[], None]) -> list[Nodes]:
        attempt = run.new_attempt()
        three = [Nodes(run, rank, 3) for rank in range(3)]
        for node in three:
            node.enter(attempt)
        return three

    @pytest.fixture
    def second(self, monkeypatch: pytest.MonkeyPatch, tick: Callable[[], None]) -> Callable[[], None]:
        """Let a second pass."""

        def second() -> None:
            before = nodes.time.monotonic()
            monkeypatch.setattr("scaleup.launcher.peers.time.monotonic", lambda: before + 1)

        return second

    @pytest.mark.parametrize("what", ["fails", "stops", "is stopped and ends"])
    def test_what_happens_to_one_all_hear_within_seconds(
        self, three: list[Nodes], second: Callable[[], None], what: str
    ) -> None:
        """Also if it happens while nobody hurries any more."""
        for _ in range(100):
            second()
            heard = [node.another_failed() or node.another_stops() for node in three]  # all of them look
            assert heard == [False, False, False]
        if what == "stops":
            three[2].tell_to_stop()
        else:
            three[2].end(Part("x" if what == "fails" else "", signalled=what != "fails"))
        for _ in range(int(nodes.LOOK_SECONDS + 2 * nodes.NEWS_SECONDS)):
            second()
            heard = [node.another_failed() if what == "fails" else node.another_stops() for node in three[:2]]
        assert heard == [True, True]

    def test_which_others_have_ended(self, three: list[Nodes], second: Callable[[], None]) -> None:
        """As a node must know that only serves."""
        three[0].end(Part())
        for _ in range(3):
            second()
            three[0].absent()
            assert not three[2].have_ended([0, 1])
        three[1].end(Part())
        for _ in range(3):
            second()
            three[0].absent()
        assert three[2].have_ended([0, 1])

    def test_a_node_that_comes_late_finds_where_to_meet(self, run: RunFolder, tick: Callable[[], None]) -> None:
        """And that it is over."""
        first = Nodes(run, 0, 2)
        first.enter(attempt := run.new_attempt(), Rendezvous("10.0.0.1", 7))
        first.end(Part("x"))
        first.close(Ending("failed", "x"), 0)
        assert rendezvous_of(attempt) == Rendezvous("10.0.0.1", 7)
        late = Nodes(run, 1, 2)
        late.enter(attempt)
        assert late.another_failed()

    def test_an_error_of_a_worker_travels_with_the_ending(self, two: tuple[Nodes, Nodes]) -> None:
        first, second = two
        error = {"rank": "policy-rank1", "time": 1.0, "problems": [], "error": "x", "traceback": "T"}
        first.close(Ending("failed", "x", error=error), 0)
        ending = second.final_ending()
        assert ending is not None and ending[0].error == error

    @pytest.mark.parametrize("num_nodes", [1, 2, 8])
    def test_less_than_one_operation_a_node_every_three_seconds(
        self, run: RunFolder, second: Callable[[], None], monkeypatch: pytest.MonkeyPatch, num_nodes: int
    ) -> None:
        """Four ranks a node, which take a step a second, for ten minutes without news."""
        attempt, operations = run.new_attempt(), []
        for name in ("post", "read"):
            known = getattr(NoticeBoard, name)
            counted = lambda *arguments, known=known: operations.append(1) or known(*arguments)  # noqa: E731
            monkeypatch.setattr(NoticeBoard, name, counted)
        agents = [Nodes(run, rank, num_nodes) for rank in range(num_nodes)]
        for agent in agents:
            agent.enter(attempt)

        def watch(step: int) -> None:
            second()
            for node, agent in enumerate(agents):
                names = [f"policy-rank{4 * node + rank}" for rank in range(4)]
                agent.show({name: WorkerState(name, "h", 7, step, "x", step, step, (step, 0)) for name in names}, False)
                assert not agent.another_stops() and not agent.another_failed()

        for step in range(60):
            watch(step)
        operations.clear()
        for step in range(600):
            watch(step)
        assert num_nodes * 600 / BEAT_SECONDS <= len(operations) <= num_nodes * 600 / 3
        told = agents[0].ranks_elsewhere("policy")
        assert len(told) == 4 * (num_nodes - 1) and all(state.beat >= 599 - 2 * BEAT_SECONDS for state in told)
