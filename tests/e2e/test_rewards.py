"""Rewards of stage rl from the command line, on conversations: a function of one's own, ready ones and a judge; and a
function that fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli import metrics, run, scaleup, write_config

pytestmark = pytest.mark.slow
TEMPLATE = (
    "{% for turn in messages %}<{{ turn['role'] }}>{{ turn['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FUNCTION = """
import os

async def tokens(prompts, completions, completion_ids, answer):
    for prompt, completion in zip(prompts, completions):
        assert [turn["role"] for turn in prompt] == ["user"]
        assert completion[0]["role"] == "assistant" and isinstance(completion[0]["content"], str)
    assert "RANK" not in os.environ and set(answer) <= {"a", "c"}
    return [len(ids) for ids in completion_ids]

def leaves_one_out(completions):
    return [None, *[1.0] * (len(completions) - 1)]
"""
RL: dict[str, Any] = {
    "stage": "rl",
    "name": "rewarded",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "chats.jsonl", "messages": "messages", "chat_template": "chat.jinja", "max_length": 32},
    "algorithm": {"type": "rloo", "num_generations": 2},
    "rollouts": {"num_rollouts": 2, "batch_size": 8, "max_new_tokens": 6},
    "train": {"learning_rate": 1e-4},
    "parallel": {"num_processes": 2, "strategy": "ddp"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewards")
    turns = [({"role": "user", "content": "ab" * (1 + number % 4)}, "ac"[number % 2]) for number in range(12)]
    rows = [{"messages": [turn], "answer": answer} for turn, answer in turns]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "chat.jinja").write_text(TEMPLATE)
    (folder / "mine.py").write_text(FUNCTION)
    (folder / "key").write_text("sesame\n")
    return folder


@pytest.fixture(scope="module")
def judged() -> Iterator[tuple[str, list[str]]]:
    """The address of a judge that rates a text by its length, and what it was asked."""
    asked: list[str] = []

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Authorization"] == "Bearer sesame"
            text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
            asked.append(text)
            message = {"role": "assistant", "content": f"Score: {len(text.partition('|')[2])}"}
            body = json.dumps({"choices": [{"message": message}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/chat/completions", asked
        server.shutdown()


def function(name: str, function: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "placement": "function", "function": function, **settings}


def test_functions_and_a_judge_score_conversations(place: Path, judged: tuple[str, list[str]]) -> None:
    url, asked = judged
    judge = {"model": "m", "template": "{prompt}|{response}", "api_key_file": "key"}
    rewards = [
        function("tokens", "mine.py:tokens", weight=0.5),
        function("near", "builtin:length", arguments={"target": 100}),
        function("said", "builtin:contains", weight=0.1),
        {"name": "judged", "placement": "http", "url": url, "format": "openai", "judge": judge, "weight": 0.01},
    ]
    folder = run(RL | {"rewards": rewards}, cwd=place)
    lines = [line for line in metrics(folder) if "reward" in line]
    assert len(lines) == 2 and len(asked) == 2 * 8
    assert all(text.startswith("user: ab") for text in asked)
    for line in lines:
        means = {name: line[f"rewards/{name}/mean"] for name in ("tokens", "near", "said", "judged")}
        assert 1 <= means["tokens"] <= 6
        assert means["near"] == pytest.approx(means["tokens"] - 100)
        weighted = sum(reward.get("weight", 1.0) * means[reward["name"]] for reward in rewards)
        assert line["reward"] == pytest.approx(weighted)
    said = [len(text.partition("|")[2]) for text in asked]
    assert sum(line["rewards/judged/mean"] for line in lines) == pytest.approx(sum(said) / 8)
    assert not any(b"sesame" in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_a_reward_that_is_left_out_ends_the_run_by_name(place: Path) -> None:
    rewards = [function("one", "builtin:length"), function("other", "mine.py:leaves_one_out")]
    config = RL | {"name": "left-out", "rewards": rewards}
    result = scaleup("run", write_config(config, place), cwd=place)
    assert result.code == 2
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: rewards.1.function: ") and "returned None for completion 0 of " in line
