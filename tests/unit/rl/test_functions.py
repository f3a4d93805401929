"""Reward functions in their processes: what they get and give, and every way in which one of them can fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from trl.rewards import think_format_reward

from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat
from scaleup.rl.rewards.functions import FunctionCall, FunctionRewards
from scaleup.rl.rewards.interface import Sample
from tests.cli import alive, wait_until
from tests.unit.data.tiny import single_process

SAMPLES = [
    Sample("ab", "cde", True, {"answer": 3}, completion_ids=[5, 6, 1]),
    Sample("é\ud800", "", False, {"answer": 5, "hint": "x"}, completion_ids=[7]),
]
MESSAGES = [{"role": "user", "content": "Who?"}]
CHAT = Sample("<s>Who?", "Me.", True, {"answer": 1}, Chat(MESSAGES), [3, 4])
HEAD = "import pathlib, time, os, sys\nHERE = pathlib.Path(__file__).parent\n"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return single_process(tmp_path_factory.mktemp("functions"))


class Maker:
    """Makes rewards of a file's function `reward`, and ends their processes."""

    def __init__(self, runtime: Runtime, folder: Path) -> None:
        self.runtime, self.folder = runtime, folder
        self.made: list[FunctionRewards] = []

    def __call__(self, body: str, **call: Any) -> FunctionRewards:
        (self.folder / "mine.py").write_text(HEAD + body, encoding="utf-8")
        return self.of(f"{self.folder / 'mine.py'}:reward", **call)

    def of(self, function: str, **call: Any) -> FunctionRewards:
        self.made.append(FunctionRewards(self.runtime, FunctionCall(function, **call)))
        return self.made[-1]


@pytest.fixture
def make(runtime: Runtime, tmp_path: Path) -> Iterator[Maker]:
    maker = Maker(runtime, tmp_path)
    yield maker
    for rewards in maker.made:
        rewards.close()


def collected(rewards: FunctionRewards, *batches: Sequence[Sample]) -> list[float]:
    for batch in batches:
        rewards.submit(batch)
    return rewards.collect()


def error_of(rewards: FunctionRewards, samples: Sequence[Sample] = SAMPLES) -> str:
    with pytest.raises(ScaleupError) as caught:
        collected(rewards, samples)
    return str(caught.value)


def test_a_function_gets_what_trl_gives_it(make: Maker) -> None:
    rewards = make(
        "def reward(prompts, completions, completion_ids, **columns):\n"
        "    assert columns == {'answer': [3, 5], 'hint': [None, 'x']} and completion_ids == [[5, 6, 1], [7]]\n"
        "    return [len(p + c) for p, c in zip(prompts, completions)]"
    )
    assert collected(rewards, SAMPLES) == [5.0, 2.0]
    assert collected(rewards, []) == []


def test_a_function_gets_only_the_columns_it_names(make: Maker) -> None:
    rewards = make("def reward(completions, answer):\n    return answer")
    assert collected(rewards, SAMPLES[:1], SAMPLES[1:]) == [3.0, 5.0]
    other = Sample("a", "b", True, {"answer": 2, "image": b"bytes"})
    assert collected(rewards, [other]) == [2.0], "what it does not read need not be text"


@pytest.mark.parametrize("as_messages", [True, False])
def test_conversations_are_messages_as_in_trl_or_text(make: Maker, as_messages: bool) -> None:
    expected = len(str(MESSAGES)) if as_messages else len("<s>Who?")
    body = "def reward(prompts, completions):\n    return [len(str(prompts[0])) + 100 * len(str(completions[0]))]"
    rewards = make(body, as_messages=as_messages)
    answer = [{"role": "assistant", "content": "Me."}] if as_messages else "Me."
    assert collected(rewards, [CHAT]) == [expected + 100 * len(str(answer))]
    assert collected(rewards, SAMPLES[:1]) == [302.0], "a prompt that is text stays text"


def test_a_function_of_trl_is_called_as_it_is(make: Maker) -> None:
    thought = Sample("", "<think>a</think>b", True, {}, Chat(MESSAGES))
    name = f"{think_format_reward.__module__}:think_format_reward"
    assert collected(make.of(name, as_messages=True), [thought, CHAT]) == [1.0, 0.0]


def test_a_coroutine_is_awaited(make: Maker) -> None:
    body = "import asyncio\nasync def reward(answer):\n    await asyncio.sleep(0)\n    return answer"
    assert collected(make(body), SAMPLES) == [3.0, 5.0]


def test_arguments_are_given_beside_the_rows(make: Maker) -> None:
    body = "def reward(completions, answer, factor=1, **columns):\n    return [factor * each for each in [answer] * 2]"
    assert collected(make(body, arguments={"factor": 2, "answer": 4}), SAMPLES) == [8.0, 8.0]


def test_arrays_and_tensors_are_numbers(make: Maker) -> None:
    body = "import numpy\ndef reward(answer):\n    return numpy.array(answer)"
    assert collected(make(body), SAMPLES) == [3.0, 5.0]
    body = "import numpy\ndef reward(answer):\n    return [numpy.float32(1.5), True]"
    assert collected(make(body), SAMPLES) == [1.5, 1.0]


def test_a_slow_function_does_not_hold_the_rank(make: Maker) -> None:
    """It is at work once `submit` has returned, and a second batch waits behind the first."""
    rewards = make(
        "def reward(answer):\n    (HERE / 'began').touch()\n    while not (HERE / 'go').exists():\n"
        "        time.sleep(0.01)\n    return answer"
    )
    rewards.submit(SAMPLES[:1])
    rewards.submit(SAMPLES[1:])
    wait_until(lambda: (make.folder / "began").exists())
    (make.folder / "go").touch()
    assert rewards.collect() == [3.0, 5.0]


def test_what_a_function_prints_is_no_answer(make: Maker, capfd: pytest.CaptureFixture[str]) -> None:
    assert collected(make("def reward(answer):\n    print('{\"scores\": [1]}')\n    return answer"), SAMPLES) == [
        3.0,
        5.0,
    ]
    assert '{"scores": [1]}' in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py", "'mine.py' names no function -> write FILE.py:NAME, MODULE:NAME or builtin:NAME"),
        ("absent.py:reward", "there is no file absent.py"),
        ("no_such_module:reward", "no_such_module cannot be loaded: ModuleNotFoundError"),
        ("{mine}:absent", "has no function absent -> its functions: reward"),
        ("{mine}:NUMBER", "has no function NUMBER"),
        ("{broken}:reward", "cannot be loaded: SyntaxError"),
        ("{leaves}:reward", "cannot be loaded: SystemExit"),
        ("builtin:lengths", "builtin has no function lengths -> its functions:"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_named(make: Maker, name: str, message: str) -> None:
    files = {"broken": "def reward(", "leaves": "import sys\nsys.exit()", "mine": "NUMBER = 1\ndef reward(**all): ..."}
    for file, text in files.items():
        (make.folder / f"{file}.py").write_text(text)
    places = {file: make.folder / f"{file}.py" for file in files}
    with pytest.raises(ScaleupError) as caught:
        make.of(name.format(**places))
    assert str(caught.value).startswith("reward.function: ")
    assert message in str(caught.value)


def test_settings_that_a_function_does_not_take_are_named(make: Maker) -> None:
    with pytest.raises(ScaleupError, match=r"cannot have the arguments \{'factors': 2\}: TypeError: .* 'factors'"):
        make("def reward(answer, factor=1):\n    return answer", arguments={"factors": 2})
    with pytest.raises(ScaleupError, match=r"builtin:regex cannot have the arguments .*: error: unterminated"):
        make.of("builtin:regex", arguments={"pattern": "["})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('gold')", "mine.py:reward raised KeyError: 'gold' -> the log has its traceback"),
        ("sys.exit(3)", "raised SystemExit: 3"),
        ("return [1.0]", "2 texts were to be scored, and 1 scores came"),
        ("return [1.0, float('nan')]", "score 1 of 2 is nan"),
        ("return [1.0, '2']", "score 1 is str '2', not a number"),
        ("return {'a': 1}", "a list of 2 scores is due, and dict"),
        ("return [1.0, object()]", "returned what is no list of numbers"),
        ("return [1.0, None]", "returned None for completion 1 of 2 -> return a number for each: TRL leaves"),
        ("os._exit(7)", "gave no answer: its process ended with exit code 7 -> see the log"),
        ("os.kill(os.getpid(), 9)", "gave no answer: its process was killed by signal 9"),
    ],
)
def test_a_function_that_fails_is_named(make: Maker, body: str, message: str) -> None:
    error = error_of(make(f"def reward(**columns):\n    {body}"))
    assert error.startswith("reward.function: ")
    assert message in error


def test_a_column_that_is_no_json_is_named(make: Maker) -> None:
    sample = Sample("a", "b", True, {"image": b"bytes"})
    message = "reward.function: the column image cannot be given to a function in another process"
    assert message in error_of(make("def reward(**columns):\n    return [0.0]"), [sample])


def test_a_function_that_takes_too_long_is_ended_with_what_it_started(make: Maker) -> None:
    body = (
        "import subprocess\ndef reward(answer):\n    child = subprocess.Popen(['sleep', '600'])\n"
        "    with (HERE / 'pids').open('a') as file:\n        file.write(f'{os.getpid()} {child.pid} ')\n"
        "    child.wait()"
    )
    error = error_of(make(body, timeout_seconds=0.5, retries=1))
    assert "mine.py:reward took longer than 0.5 s, and so it was after 1 retries -> raise its timeout_seconds" in error
    pids = [int(pid) for pid in (make.folder / "pids").read_text().split()]
    assert len(pids) == 4
    wait_until(lambda: alive(pids) == [], timeout=60)


@pytest.mark.parametrize("fails", ["raise OSError('busy')", "time.sleep(60)", "os._exit(1)"])
def test_a_call_is_made_again(make: Maker, fails: str) -> None:
    body = (
        "def reward(answer):\n    file = HERE / 'tries'\n    file.write_text(file.read_text() + 'x')\n"
        f"    if len(file.read_text()) < 3:\n        {fails}\n    return answer"
    )
    (make.folder / "tries").write_text("")
    assert collected(make(body, timeout_seconds=1, retries=2), SAMPLES) == [3.0, 5.0]


def test_a_frozen_process_is_replaced(make: Maker) -> None:
    """Also one whose pipe is full, so that nothing can be written to it."""
    rewards = make("def reward(completions, pids=None):\n    return [float(os.getpid())] * len(completions)")
    rewards._call = FunctionCall(rewards._call.function, timeout_seconds=1, retries=1)
    [first] = collected(rewards, SAMPLES[:1])
    os.kill(int(first), signal.SIGSTOP)
    [second] = collected(rewards, [Sample("", "x" * 300_000, True)])
    assert second != first


def test_the_process_ends_with_its_rank(tmp_path: Path) -> None:
    """However the rank ends, and whatever the function is at."""
    (tmp_path / "mine.py").write_text(
        HEAD + "def reward(answer):\n    (HERE / 'pid').write_text(f'{os.getpid()}.')\n    time.sleep(60)"
    )
    rank = (
        "import json, subprocess, sys, time\n"
        "from scaleup.rl.rewards.functions import _Process\n"
        "process = _Process()\n"
        f"process.ask({{'function': {str(tmp_path / 'mine.py')!r} + ':reward', 'arguments': {{}}}}, 60)\n"
        "process.ask({'answer': [1]}, 60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", rank]) as started:
        pid = tmp_path / "pid"
        wait_until(lambda: pid.exists() and pid.read_text().endswith("."))
        started.kill()
        started.wait()
    wait_until(lambda: alive([int(pid.read_text()[:-1])]) == [])


def test_signals_leave_it_to_its_rank(make: Maker) -> None:
    """Slurm tells all processes of a job, and a rank that saves needs its scores first."""
    rewards = make("def reward(answer):\n    (HERE / 'pid').touch()\n    time.sleep(0.3)\n    return [os.getpid()]")
    [pid] = collected(rewards, SAMPLES[:1])
    (make.folder / "pid").unlink()
    rewards.submit(SAMPLES[:1])
    wait_until(lambda: (make.folder / "pid").exists())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(int(pid), number)
    assert rewards.collect() == [pid]


def test_closing_waits_for_no_answer(make: Maker) -> None:
    rewards = make(
        "def reward(answer):\n    (HERE / 'pid').write_text(f'{os.getpid()}.')\n    time.sleep(60)", retries=5
    )
    rewards.submit(SAMPLES)
    pid = make.folder / "pid"
    wait_until(lambda: pid.exists() and pid.read_text().endswith("."))
    rewards.close()
    wait_until(lambda: alive([int(pid.read_text()[:-1])]) == [])
    wait_until(lambda: not any(each.name.startswith("reward_") for each in threading.enumerate()))
