"""Two process groups over the bridge: real processes, tiny scorers, and every way in which one of them can go away."""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.bridge_file import free_port
from scaleup.bridge import client as bridge
from scaleup.bridge import server as bridge_server
from scaleup.bridge import wire as bridge_wire
from scaleup.bridge.client import BridgeClient
from scaleup.bridge.store import BridgePlace, BridgeStore, signed
from scaleup.distributed.runtime import Runtime
from scaleup.rl.rewards.interface import Sample
from scaleup.rl.rewards.placements import GroupRewards
from scaleup.rl.rewards.serve import serve
from tests.distributed.worlds import Gate, World

pytestmark = pytest.mark.timeout(120)
MODEL = "runs/reward"
Score = Callable[[Sequence[Sample]], list[float]]
Start = Callable[..., World]


def score(samples: Sequence[Sample]) -> list[float]:
    return [len(s.prompt) + len(s.response) / 7 + math.pi * s.finished for s in samples]


def samples(count: int, start: int = 0) -> list[Sample]:
    """Of different lengths, in alphabets that are not ASCII, one with half a character: models write such things."""
    return [Sample("é" * (start + i), "\ud83d" + "字" * (2 * i), i % 2 == 0, {"id": i}) for i in range(count)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    worlds: list[World] = []

    def begin(name: str, size: int, main: Callable[[Runtime], Any]) -> World:
        worlds.append(World(tmp_path, f"{name}{len(worlds)}", size, main))
        return worlds[-1]

    yield begin
    for world in worlds:
        world.end()
        print(world.log())


def place_for(policy_size: int) -> BridgePlace:
    return BridgePlace("127.0.0.1", free_port("port"), secrets.token_hex(16), policy_size)


def rewards(runtime: Runtime, place: BridgePlace, timeout: float = 40, reconnect: float = 40) -> GroupRewards:
    return GroupRewards(runtime, BridgeClient(runtime, place, MODEL, timeout, reconnect))


def serving(
    place: BridgePlace, scorer: Score = score, model: str = MODEL, sharded: bool = False
) -> Callable[[Runtime], None]:
    """`sharded`: as under FSDP2, which itself would take seconds to start."""

    def main(runtime: Runtime) -> None:
        if sharded:
            runtime.group = runtime.group.model_copy(update={"strategy": "fsdp2"})
        serve(runtime, place, model, scorer, join_seconds=40)

    return main


def asking(
    place: BridgePlace, batches: Sequence[Sequence[Sample]], timeout: float = 40, reconnect: float = 40
) -> Callable[[Runtime], list[float]]:
    """A policy that asks once and closes."""

    def main(runtime: Runtime) -> list[float]:
        placed = rewards(runtime, place, timeout, reconnect)
        try:
            for batch in batches:
                placed.submit(batch)
            return placed.collect()
        finally:
            placed.close()

    return main


@pytest.mark.parametrize(
    ("policies", "servers", "sharded"),
    [(1, 1, False), (2, 1, False), (1, 2, False), (3, 2, False), (2, 2, True), (1, 3, True)],
)
def test_scores_are_those_of_a_direct_call(policies: int, servers: int, sharded: bool, start: Start) -> None:
    """Many submits, one of them empty, then a second round in which the last rank submits nothing at all."""

    def batches(rank: int) -> list[list[Sample]]:
        return [samples(5 + rank), [], samples(1, start=rank), samples(4)]

    def policy(runtime: Runtime) -> list[list[float]]:
        placed = rewards(runtime, place)
        rounds = []
        for again in range(3):
            for batch in batches(runtime.rank):
                if again != 1 or runtime.rank < policies - 1:
                    placed.submit(batch)
            rounds.append(placed.collect())
        placed.close()
        return rounds

    place = place_for(policies)
    asked, served = start("policy", policies, policy), start("reward", servers, serving(place, sharded=sharded))
    for rank, rounds in enumerate(asked.results()):
        direct = [value for batch in batches(rank) for value in score(batch)]
        assert rounds == [direct, direct if rank < policies - 1 else [], direct]
    assert served.results() == [None] * servers


def test_generation_goes_on_while_scores_are_made(start: Start) -> None:
    """The scorer waits for what the policy does only after `submit` has returned."""
    place, submitted = place_for(1), Gate()

    def patient(batch: Sequence[Sample]) -> list[float]:
        assert submitted.wait()
        return score(batch)

    def policy(runtime: Runtime) -> list[float]:
        placed = rewards(runtime, place)
        placed.submit(samples(3))
        placed.submit(samples(2))
        submitted.open()
        scores = placed.collect()
        placed.close()
        return scores

    start("reward", 1, serving(place, patient))
    assert start("policy", 1, policy).results() == [score(samples(3)) + score(samples(2))]


@pytest.mark.parametrize("sharded", [False, True])
def test_many_small_requests_in_a_moment(sharded: bool, start: Start) -> None:
    place = place_for(1)
    served = start("reward", 2, serving(place, sharded=sharded))
    batches = [samples(number % 2) for number in range(150)]
    assert start("policy", 1, asking(place, batches)).results() == [score(samples(1)) * 75]
    served.results()


def test_a_reward_group_may_be_idle_for_longer_than_any_request(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bridge_wire, bridge_server):
        monkeypatch.setattr(module, "CONNECT_SECONDS", 1.0)
    place, never = place_for(1), Gate()

    def policy(runtime: Runtime) -> list[float]:
        placed = rewards(runtime, place, timeout=1)
        placed.submit(samples(1))
        placed.collect()
        never.wait(2.5)  # it trains
        placed.submit(samples(2))
        scores = placed.collect()
        placed.close()
        return scores

    served = start("reward", 2, serving(place, sharded=True))
    assert start("policy", 1, policy).results() == [score(samples(2))]
    served.results()


def raising(batch: Sequence[Sample]) -> list[float]:
    raise RuntimeError("out of words")


def on_one(batch: Sequence[Sample]) -> list[float]:
    """Under a sharded strategy only the rank with the odd samples fails."""
    return raising(batch) if batch[0].response == samples(2)[1].response else score(batch)


@pytest.mark.parametrize(
    ("scorer", "sharded", "message"),
    [
        (raising, False, "reward group: RuntimeError: out of words"),
        (on_one, True, "reward group: RuntimeError: out of words"),
        (lambda batch: score(batch)[1:], False, "reward group: 4 texts were to be scored, and 3 scores came"),
        (lambda batch: [1.0, math.nan, 0.0, 0.0], False, "reward group: score 1 of 4 is nan"),
        (lambda batch: [math.inf] * len(batch), True, "reward group: score 0 of 2 is inf"),
    ],
)
def test_a_scorer_that_fails_stops_the_policy_with_its_words(
    scorer: Score, sharded: bool, message: str, start: Start
) -> None:
    """It is not a lost bridge: nobody waits for another reward group, and this one ends in order."""
    place = place_for(2)
    served = start("reward", 2, serving(place, scorer, sharded=sharded))
    errors = start("policy", 2, asking(place, [samples(4)])).errors()
    assert all(error.startswith("ScaleupError: ") for error in errors)
    assert any(message in error for error in errors)
    assert served.results() == [None, None]


def test_a_reward_group_with_another_secret_does_not_join(start: Start) -> None:
    place = place_for(1)
    other = BridgePlace(place.address, place.port, secrets.token_hex(16), 1)
    served = start("reward", 2, serving(other))
    asked = start("policy", 1, asking(place, [samples(1)], reconnect=600))
    errors = served.errors()
    assert all("ScaleupError: reward bridge: " in error for error in errors)
    assert "g1/offer is not signed with this run's secret" in errors[0]
    asked.send(signal.SIGTERM)
    assert "StopWhileWaiting" in asked.errors()[0]  # it has no scores, and still waits for its own reward group


def test_a_peer_that_forges_its_hello_is_refused_by_name(start: Start) -> None:
    """Anybody who reaches the port can write into the store."""
    place = place_for(2)

    def forger(runtime: Runtime) -> None:
        hello = {"protocol": 1, "size": 1, "mode": "replicated", "model": MODEL}
        BridgeStore.join(place, 10).write("g1/hello", signed(b"guessed", "g1/hello", hello))

    start("forger", 1, forger)
    errors = start("policy", 2, asking(place, [samples(1)])).errors()
    assert all("g1/hello is not signed with this run's secret" in error for error in errors)


def test_answers_that_are_not_signed_are_refused_by_name(start: Start) -> None:
    place = place_for(1)

    def forger(runtime: Runtime) -> None:
        def forging(batch: Sequence[Sample]) -> list[float]:
            bridge_wire.Link._mac = lambda *_: bytes(32)  # type: ignore[method-assign]
            return score(batch)

        serving(place, forging)(runtime)

    start("forger", 1, forger)
    assert "a message came that is not signed" in start("policy", 1, asking(place, [samples(1)])).errors()[0]


def test_another_reward_model_is_refused_by_name(start: Start) -> None:
    place = place_for(1)
    start("reward", 1, serving(place, model="runs/other"))
    error = start("policy", 1, asking(place, [samples(1)])).errors()[0]
    assert "reward.model: the reward group scores with runs/other" in error


def test_foreign_bytes_on_the_port_change_nothing(start: Start) -> None:
    place = place_for(1)

    def policy(runtime: Runtime) -> list[float]:
        placed = rewards(runtime, place)
        for noise in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), b""):
            with socket.create_connection((place.address, place.port)) as stranger:
                stranger.sendall(noise)
        placed.submit(samples(3))
        scores = placed.collect()
        placed.close()
        return scores

    served = start("reward", 1, serving(place))
    assert start("policy", 1, policy).results() == [score(samples(3))]
    served.results()


def test_a_request_that_is_too_large_is_refused_on_both_sides(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "MAX_BYTES", 1000)
    place = place_for(2)
    served = start("reward", 1, serving(place))
    errors = start("policy", 2, asking(place, [samples(30)])).errors()
    assert all("reward bridge: 30 texts are a request of" in error for error in errors)
    served.results()
    monkeypatch.setattr(bridge, "MAX_BYTES", 10**6)
    monkeypatch.setattr(bridge_wire, "MAX_BYTES", 1000)
    place = place_for(1)
    served = start("reward", 1, serving(place))
    asked = start("policy", 1, asking(place, [samples(30)], reconnect=600))
    assert "ScaleupError: reward bridge: a message of" in served.errors()[0]
    asked.send(signal.SIGTERM)
    assert "StopWhileWaiting" in asked.errors()[0]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "timeout"), [(signal.SIGKILL, 20.0), (signal.SIGSTOP, 2.0)])
def test_a_reward_group_that_dies_or_hangs_is_replaced_by_one_of_another_size(
    number: signal.Signals, timeout: float, start: Start
) -> None:
    """In the middle of a request, with another waiting behind it; nothing is lost and nothing is counted twice."""
    place, begun, never = place_for(2), Gate(), Gate()

    def stuck(batch: Sequence[Sample]) -> list[float]:
        begun.open()
        never.wait(60)
        return [0.0] * len(batch)

    first = start("reward", 1, serving(place, stuck))
    asked = start("policy", 2, asking(place, [samples(3), samples(2, start=5)], timeout))
    assert begun.wait()
    first.send(number)
    second = start("reward", 3, serving(place))  # in time to see that the place is taken: it waits
    assert asked.results(40) == [score(samples(3)) + score(samples(2, start=5))] * 2
    assert second.results() == [None] * 3
    if number == signal.SIGSTOP:
        first.send(signal.SIGCONT)
        assert first.ended(15) != [0]
    else:
        assert first.ended() == [-signal.SIGKILL]


def test_a_loss_is_told_until_another_group_has_come(start: Start, tmp_path: Path) -> None:
    """Otherwise the launcher would take the new one for one that gives no answers, and end it."""
    place, begun, never, lost = place_for(1), Gate(), Gate(), tmp_path / "lost"

    def stuck(batch: Sequence[Sample]) -> list[float]:
        begun.open()
        never.wait(60)
        return [0.0] * len(batch)

    def main(runtime: Runtime) -> list[bool]:
        lost_when_found: list[bool] = []
        client = BridgeClient(
            runtime, place, MODEL, 40, 40, lambda why: lost.touch(), lambda: lost_when_found.append(lost.exists())
        )
        placed = GroupRewards(runtime, client)
        placed.submit(samples(3))
        placed.collect()
        placed.close()
        return lost_when_found

    first, asked = start("reward", 1, serving(place, stuck)), start("policy", 1, main)
    assert begun.wait()
    first.send(signal.SIGKILL)
    start("reward", 1, serving(place))
    assert asked.results(40) == [[True]]


def test_a_reward_group_that_is_asked_to_stop_ends_between_requests(start: Start) -> None:
    place, first_done, second_there = place_for(1), Gate(), Gate()

    def policy(runtime: Runtime) -> list[float]:
        placed = rewards(runtime, place)
        placed.submit(samples(2))
        placed.collect()
        first_done.open()
        assert second_there.wait()
        placed.submit(samples(3))
        scores = placed.collect()
        placed.close()
        return scores

    first = start("reward", 2, serving(place, sharded=True))
    asked = start("policy", 1, policy)
    assert first_done.wait()
    os.kill(first.pids[1], signal.SIGTERM)
    assert first.results() == [None, None]
    second = start("reward", 1, serving(place))
    second_there.open()
    assert asked.results() == [score(samples(3))]
    second.results()


@pytest.mark.parametrize("busy", [False, True])
def test_a_reward_group_ends_soon_after_the_policy_was_killed(busy: bool, start: Start) -> None:
    """Idle, it sees the connection close; in a forward pass that never ends, the watch sees the store gone."""
    place, begun, never = place_for(1), Gate(), Gate()

    def scorer(batch: Sequence[Sample]) -> list[float]:
        begun.open()
        if busy:
            never.wait(60)
        return score(batch)

    def policy(runtime: Runtime) -> None:
        placed = rewards(runtime, place)
        placed.submit(samples(1))
        never.wait(60)

    served, asked = start("reward", 2, serving(place, scorer)), start("policy", 1, policy)
    assert begun.wait()
    asked.send(signal.SIGKILL)
    assert 0 not in served.ended(15)
    assert "the policy" in served.log()


def test_a_policy_without_a_reward_group_ends_by_name(start: Start) -> None:
    errors = start("policy", 2, asking(place_for(2), [samples(1)], reconnect=1)).errors()
    message = "ScaleupError: reward.reconnect_seconds: the policy waited 1 s for a reward group, and none came"
    assert all(error.startswith(message) for error in errors)


def test_a_policy_that_is_asked_to_stop_does_not_wait_for_a_reward_group(start: Start) -> None:
    place, here = place_for(2), Gate()

    def policy(runtime: Runtime) -> None:
        placed = rewards(runtime, place, reconnect=600)
        if runtime.is_main:
            here.open()
        placed.submit(samples(1))

    asked = start("policy", 2, policy)
    assert here.wait()
    os.kill(asked.pids[1], signal.SIGTERM)
    assert all(error.startswith("StopWhileWaiting") for error in asked.errors())


def test_a_reward_group_without_a_policy_ends(start: Start) -> None:
    place = place_for(1)
    served = start("reward", 1, lambda runtime: serve(runtime, place, MODEL, score, join_seconds=0.5))
    assert "BridgeLost: no policy answered at 127.0.0.1" in served.errors()[0]


def test_the_port_of_another_program_is_named(start: Start) -> None:
    place = place_for(2)
    with socket.create_server((place.address, place.port)):
        errors = start("policy", 2, asking(place, [])).errors()
    assert any(f"the policy cannot listen on 127.0.0.1:{place.port}" in error for error in errors)
    assert all("ScaleupError" in error for error in errors)


def test_only_the_planned_address_listens() -> None:
    place = BridgePlace("127.0.0.2", free_port("port"), "00", 1)
    store = BridgeStore.host(place)
    socket.create_connection((place.address, place.port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", place.port), timeout=5)
    assert store.generation() == 0


def test_the_secret_is_not_shown() -> None:
    assert "c0ffee" not in repr(BridgePlace("127.0.0.1", 1, "c0ffee", 1))
