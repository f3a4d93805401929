"""A judge behind an OpenAI-compatible endpoint: a real server on a free port says what it reads and what it answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from scaleup.config.reward_source import JudgeConfig
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat
from scaleup.rl.rewards.http import Endpoint
from scaleup.rl.rewards.interface import Sample
from scaleup.rl.rewards.judge import JudgeRewards, authorization
from tests.service import Service
from tests.unit.data.tiny import single_process

SAMPLES = [Sample("Hello", "abc", True), Sample("Bye", "de", False)]
TEMPLATE = "{prompt}|{response}"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return single_process(tmp_path_factory.mktemp("judge"))


class Server(Service):
    """Answers as chat completions' endpoints do; `says` maps what the judge reads to what it says, or to a status and a
    body."""

    def __init__(self) -> None:
        super().__init__("/v1/chat/completions", self._completed)
        self.says: Callable[[str], str | tuple[int, bytes]] = lambda text: f"Score: {len(text)}"

    def _completed(self, asked: dict[str, Any]) -> tuple[int, bytes]:
        said = self.says(asked["messages"][-1]["content"])
        if isinstance(said, tuple):
            return said
        return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as server:
        yield server


def collected(
    runtime: Runtime, server: Server, samples: Sequence[Sample] = SAMPLES, seconds: float = 10, **judge: Any
) -> list[float]:
    config = JudgeConfig(model="m", **{"template": TEMPLATE, **judge})
    headers = authorization(config, "reward")
    rewards = JudgeRewards(runtime, Endpoint(server.url, 10, seconds, headers), config)
    try:
        rewards.submit(samples)
        return rewards.collect()
    finally:
        rewards.close()


def test_each_response_is_a_request(runtime: Runtime, server: Server) -> None:
    assert collected(runtime, server, max_tokens=7) == [len("Hello|abc"), len("Bye|de")]
    asked = {each["messages"][0]["content"]: each for each in server.asked}
    assert asked["Bye|de"] == {
        "model": "m",
        "messages": [{"role": "user", "content": "Bye|de"}],
        "temperature": 0,
        "max_tokens": 7,
    }
    assert server.keys == [None, None]
    assert collected(runtime, server, []) == []


def test_a_judge_reads_the_turns_of_a_conversation(runtime: Runtime, server: Server) -> None:
    chat = Chat([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}])
    collected(runtime, server, [Sample("<s>[INST]", "Me.", True, chat=chat)])
    assert server.asked[0]["messages"][0]["content"] == "system: Be kind.\n\nuser: Who?|Me."


def test_by_default_it_is_told_what_the_pattern_finds(runtime: Runtime, server: Server) -> None:
    default = JudgeConfig(model="m")
    server.says = lambda text: "Score: 1? No. Score: 7.5"
    assert collected(runtime, server, template=default.template) == [7.5, 7.5]
    assert "Score: N" in server.asked[0]["messages"][0]["content"]


def test_several_requests_are_on_their_way_and_scores_keep_their_order(runtime: Runtime, server: Server) -> None:
    together = threading.Barrier(4)

    def answer(text: str) -> str:
        together.wait(30)
        return f"Score: {text.partition('|')[0]}"

    server.says = answer
    samples = [Sample(str(number), "", True) for number in range(8)]
    assert collected(runtime, server, samples, max_concurrency=4) == list(range(8))


def test_a_busy_endpoint_is_asked_again(runtime: Runtime, server: Server) -> None:
    replies = iter([(503, b"loading"), (429, b"slow down")])
    server.says = lambda text: next(replies, None) or "Score: 2"
    assert collected(runtime, server) == [2.0, 2.0]
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("said", "judge", "message"),
    [
        ("I like it.", {}, "reward.judge.pattern: finds no score in the judge's answer 'I like it.' -> say in"),
        (None, {}, "reward.judge.pattern: finds no score in the judge's answer 'None'"),
        ("Score: high", {"pattern": r"Score: (\w+)"}, "reward.judge.pattern: finds 'high' in the judge's answer"),
        ("Score: nan", {"pattern": r"Score: (\w+)"}, "reward.url: score 0 of 2 is nan"),
        ((200, b'{"choices": []}'), {}, "reward.url: http://127.0.0.1:"),
        ((404, b"no such model"), {}, "refuses: 404 Not Found no such model"),
        ((500, b""), {}, "gave no answer for 1 s; the last try: status 500"),
    ],
)
def test_an_answer_without_a_score_is_named(
    runtime: Runtime, server: Server, said: Any, judge: dict[str, Any], message: str
) -> None:
    server.says = lambda text: said
    with pytest.raises(ScaleupError) as caught:
        collected(runtime, server, seconds=1, **judge)
    assert message in str(caught.value)


def test_the_key_comes_from_where_the_config_says(
    runtime: Runtime, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sesame")
    collected(runtime, server, api_key_env="JUDGE_KEY")
    (tmp_path / "key").write_text("open\n")
    collected(runtime, server, api_key_file=str(tmp_path / "key"))
    assert server.keys == ["Bearer sesame"] * 2 + ["Bearer open"] * 2
    monkeypatch.delenv("JUDGE_KEY")
    for judge, message in (
        ({"api_key_env": "JUDGE_KEY"}, "rewards.0.judge.api_key_env: leads to no key -> set it"),
        ({"api_key_file": str(tmp_path / "no")}, "rewards.0.judge.api_key_file: .* cannot be read"),
    ):
        with pytest.raises(ScaleupError, match=message):
            authorization(JudgeConfig(model="m", **judge), "rewards.0")


def test_the_key_is_shown_nowhere() -> None:
    assert "sesame" not in repr(Endpoint("http://a/", 1, 1, {"Authorization": "Bearer sesame"}))
