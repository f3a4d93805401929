"""The client against stand-ins of engines, which answer, die, hang, fail or come back."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scaleup.artifacts.bridge_file import BridgeFile
from scaleup.distributed.heartbeat import Heartbeat
from scaleup.errors import ScaleupError
from scaleup.generator.client import EngineClient
from scaleup.generator.messages import Answer, Request, Weights
from scaleup.generator.serving import Tell, join, serve
from scaleup.generator.wire import ConnectionLost

SECRET = "ab" * 32
REQUEST = Request(
    weights=Weights(3, "/dev/shm/folder"),
    prompts=[[1, 2, 3], [4], [5, 6]],
    seeds=np.array([7, -8, 2**62]),
    limits=np.array([2, 1, 4]),
    eos_ids=(2,),
    temperature=0.8,
)
ANSWER = Answer([[9, 10], [11], [12, 13, 2]], [[-0.5, -1.5], [-2.0], [-0.25, -1.0, -3.0]])


class Echo:
    """Answers as it was told to, and keeps what it was asked."""

    def __init__(self, answer: Callable[[Tell], Answer] = lambda tell: ANSWER) -> None:
        self.answer = answer
        self.asked: list[Request] = []

    def draw(self, request: Request, tell: Tell) -> Answer:
        self.asked.append(request)
        return self.answer(tell)


@pytest.fixture
def client() -> Iterator[EngineClient]:
    client = EngineClient("127.0.0.1", 0, SECRET, timeout_seconds=5, reconnect_seconds=5)
    yield client
    client.close()


@pytest.fixture
def engine(client: EngineClient) -> Callable[[Any], threading.Thread]:
    def started(drawer: Any, secret: str = SECRET) -> threading.Thread:
        def run() -> None:
            try:
                serve(join(BridgeFile("127.0.0.1", client.port, secret), 5), drawer, Heartbeat())
            except ConnectionLost:
                return

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    return started


def rows(answer: Answer) -> list[Sequence[Any]]:
    return [*answer.tokens, *answer.logprobs]


def test_an_answer_and_what_was_asked_arrive_whole(client: EngineClient, engine: Any) -> None:
    drawer = Echo()
    thread = engine(drawer)
    assert rows(client.submit(REQUEST).result(5)) == rows(ANSWER)
    (asked,) = drawer.asked
    assert asked.weights == REQUEST.weights and asked.prompts == REQUEST.prompts
    assert asked.seeds.tolist() == REQUEST.seeds.tolist() and asked.limits.tolist() == [2, 1, 4]
    assert (asked.eos_ids, asked.temperature, asked.is_greedy) == ([2], 0.8, False)
    client.close()
    thread.join(5)
    assert not thread.is_alive(), "the engine was told to end"


def test_an_engine_that_dies_is_replaced_and_nothing_is_lost(client: EngineClient, engine: Any) -> None:
    told: list[str] = []
    client.on_lost, client.on_found = told.append, lambda: told.append("found")

    def dies(tell: Tell) -> Answer:
        raise ConnectionLost("as if killed")

    first, second = Echo(dies), Echo()
    engine(first).join(0)
    future = client.submit(REQUEST)
    while not first.asked:
        threading.Event().wait(0.01)
    engine(second)
    assert rows(future.result(5)) == rows(ANSWER)
    assert len(second.asked) == 1
    assert told == ["found"], "the launcher sees by itself that a process has ended"


def test_an_engine_without_a_sign_of_life_counts_as_lost(client: EngineClient, engine: Any) -> None:
    told: list[str] = []
    client.timeout_seconds, client.on_lost = 0.2, told.append
    hangs = threading.Event()

    def waits(tell: Tell) -> Answer:
        hangs.wait(5)
        return ANSWER

    engine(Echo(waits))
    future = client.submit(REQUEST)
    other = Echo()
    engine(other)
    assert rows(future.result(5)) == rows(ANSWER)
    assert other.asked and told == ["the other side gives no answer"]
    hangs.set()


def test_an_engine_that_tells_of_itself_may_take_its_time(client: EngineClient, engine: Any) -> None:
    client.timeout_seconds = 2.5

    def slow(tell: Tell) -> Answer:
        for done in range(3):
            tell(done)
            threading.Event().wait(1.01)
        return ANSWER

    engine(Echo(slow))
    assert rows(client.submit(REQUEST).result(10)) == rows(ANSWER)
    assert client.done == 2


def test_what_an_engine_raises_ends_the_run_in_its_words(client: EngineClient, engine: Any) -> None:
    def fails(tell: Tell) -> Answer:
        raise ValueError("no such architecture")

    engine(Echo(fails))
    with pytest.raises(ScaleupError, match=r"generator: ValueError: no such architecture -> the generator's log"):
        client.submit(REQUEST).result(5)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(ANSWER, tokens=[[9], [11]], logprobs=[[0.0], [0.0]]),
        replace(ANSWER, tokens=[[9, 9, 9], [1], [1]], logprobs=[[0.0] * 3, [0.0], [0.0]]),
    ],
)
def test_an_answer_to_something_else_is_refused(client: EngineClient, engine: Any, wrong: Answer) -> None:
    engine(Echo(lambda tell: wrong))
    with pytest.raises(ScaleupError, match="or ones of other lengths"):
        client.submit(REQUEST).result(5)


def test_without_an_engine_the_wait_ends(client: EngineClient) -> None:
    client.reconnect_seconds = 0.2
    with pytest.raises(ScaleupError, match=r"generator.reconnect_seconds: the policy waited 0.2 s"):
        client.submit(REQUEST).result(5)


def test_an_engine_of_another_run_is_not_asked(client: EngineClient, engine: Any) -> None:
    stranger, own = Echo(), Echo()
    engine(stranger, "cd" * 32).join(0)
    future = client.submit(REQUEST)
    engine(own)
    assert rows(future.result(5)) == rows(ANSWER)
    assert not stranger.asked


def test_closing_leaves_an_engine_that_draws(client: EngineClient, engine: Any) -> None:
    begun, hangs = threading.Event(), threading.Event()

    def waits(tell: Tell) -> Answer:
        begun.set()
        hangs.wait(20)
        return ANSWER

    engine(Echo(waits))
    future = client.submit(REQUEST)
    assert begun.wait(5)
    client.close()
    with pytest.raises(ScaleupError, match="was left while it drew"):
        future.result(5)
    hangs.set()
