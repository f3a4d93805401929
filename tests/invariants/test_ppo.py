"""PPO's rewards come from the policy's own processes, a function or a service, on one process or two, in one piece or
killed and gone on: one trajectory. (A reward group is one more place: tests/e2e/test_reward_group.py.)"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from scaleup.rl.rewards.function_worker import load_function
from tests.classifier import sharp_classifier
from tests.cli import (
    differing,
    folder_of,
    interrupt,
    largest_weight_difference,
    logs,
    metrics,
    reached,
    run,
    worker_ids,
)

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5
NUM_ROLLOUTS = 8
CONFIG: dict[str, Any] = {
    "stage": "ppo",
    "model": {"path": "builtin:tiny-t5"},
    "adapter": {"type": "lora", "r": 4, "target_modules": "all-linear"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "max_length": 32},
    "ppo": {
        "num_rollouts": NUM_ROLLOUTS,
        "rollout_batch_size": 8,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "max_new_tokens": 8,
        "kl_controller": "adaptive",
        "kl_horizon": 100.0,
    },
    "train": {
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "save_steps": 2,
    },
    "parallel": {"num_processes": 1},
}
COLOCATED = {"name": "colocated", "reward": {"model": {"path": "classifier"}, "label": "positive"}}
FUNCTION = """
from pathlib import Path

import torch
from scaleup.config.schema import ScorerConfig
from scaleup.config.schema import ModelConfig
from scaleup.describe.model import model_facts
from scaleup.models.scoring import load_scorer

asked = ModelConfig(path=str(Path(__file__).parent / "classifier"), task="sequence_classification")
scorer = load_scorer(ScorerConfig(asked, label="positive"), model_facts(asked), torch.device("cpu"))


def positive(prompts, completions):
    return scorer.score(list(zip(prompts, completions)))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    rows = [{"prompt": "ab" * (1 + number % 7)} for number in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sharp_classifier(folder / "classifier")
    (folder / "reward.py").write_text(FUNCTION, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    """A service that scores as the function does."""
    positive = load_function(f"{place}/reward.py:positive")

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"scores": positive(asked["prompts"], asked["completions"])}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/score"
        server.shutdown()


@pytest.fixture(scope="module")
def runs(place: Path, url: str, pool: ThreadPoolExecutor) -> dict[str, Future[Path]]:
    """The longest first. Four launches: the run over http is killed on its way."""
    seed = int(os.environ.get("SCALEUP_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"the kill of test_ppo is drawn with SCALEUP_TEST_SEED={seed}")
    function = {"name": "function", "reward": {"placement": "function", "function": "reward.py:positive"}}
    http = {"name": "http", "reward": {"placement": "http", "url": url}}
    return {
        "http": pool.submit(killed_and_resumed, CONFIG | http, place, random.Random(seed)),
        "function": pool.submit(run, differing(CONFIG | function, {"parallel.num_processes": 2}), cwd=place),
        "colocated": pool.submit(run, differing(CONFIG | COLOCATED, {"reward.placement": "colocated"}), cwd=place),
    }


def killed_and_resumed(config: dict[str, Any], place: Path, chance: random.Random) -> Path:
    def kill(process: subprocess.Popen[str], folder: Path) -> None:
        os.kill(chance.choice(worker_ids(folder)), signal.SIGKILL)

    folder = folder_of(config, place)
    result = interrupt(config, cwd=place, when=reached(chance.randint(2, NUM_ROLLOUTS - 2)), do=kill)
    assert result.code == 1, f"{result.stdout}\n{result.stderr}\n{logs(folder)}"
    assert "policy-rank0 was killed by signal 9" in result.stderr
    assert not (folder / "manifest.json").exists()
    return run(config, "--resume", cwd=place)


def measured(folder: Path) -> list[dict[str, float]]:
    """Of each rollout, without what depends on the machine, and without counts, which rounding may change by one."""
    left_out = ("time/", "memory", "ppo/policy/clipfrac", "ppo/val/clipfrac")
    return [{name: value for name, value in line.items() if not name.startswith(left_out)} for line in metrics(folder)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["function", "http"])
def test_one_trajectory(runs: dict[str, Future[Path]], name: str) -> None:
    one, other = runs["colocated"].result(), runs[name].result()
    left, right = measured(one), measured(other)
    assert [line["step"] for line in left] == [line["step"] for line in right] == list(range(1, NUM_ROLLOUTS + 1))
    for ours, theirs in zip(left, right, strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
    for pattern in ("model/*model.safetensors", "values/*.safetensors"):
        difference = largest_weight_difference(one, other, pattern)
        print(f"{name}: largest difference of a weight in {pattern}: {difference:.1e}")
        assert difference <= TOLERANCE


@pytest.mark.timeout(900)
def test_the_rewards_tell_responses_apart_and_the_policy_moves(runs: dict[str, Future[Path]]) -> None:
    """Else everything would be equal to everything."""
    lines = measured(runs["colocated"].result())
    assert all(line["objective/scores_std"] > 1e-2 for line in lines)
    assert max(abs(line["objective/kl"]) for line in lines) > 1e-3
    assert lines[-1]["objective/kl_coef"] != lines[0]["objective/kl_coef"]
