"""Measure how long scores take over the bridge, beyond the scoring itself.

Run it from the repository's root, after `make setup`; it needs no network and no GPU:

    .venv/bin/python benchmarks/bridge.py

Policy and reward ranks are forked from this process and meet on 127.0.0.1. The scorer is `len`, so what is measured is
the bridge: JSON, HMAC, gloo, threads. A round is one submit and one collect, on all policy ranks together; the time is
rank 0's. `found dead`: from SIGKILL of the reward group, in the middle of a request, to the policy's decision."""

from __future__ import annotations

import os
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

from scaleup.artifacts.bridge_file import free_port  # noqa: E402
from scaleup.bridge.client import BridgeClient  # noqa: E402
from scaleup.bridge.store import BridgePlace  # noqa: E402
from scaleup.distributed.runtime import Runtime  # noqa: E402
from scaleup.rl.rewards.interface import Sample  # noqa: E402
from scaleup.rl.rewards.placements import GroupRewards  # noqa: E402
from scaleup.rl.rewards.serve import serve  # noqa: E402
from tests.distributed.worlds import Gate, World  # noqa: E402

WORDS = "a film that is neither long nor short, and that I would see again with anybody who asks me to. "
BATCHES = {
    "no texts": [],
    "64 texts of 500 characters": [Sample(WORDS[:95] * 2, WORDS[:62] * 5, True)] * 64,
    "1024 texts of 500 characters": [Sample(WORDS[:95] * 2, WORDS[:62] * 5, True)] * 1024,
}
SIZES = [(1, 1, False), (2, 1, False), (2, 2, False), (1, 2, True)]
ROUNDS = 300


def score(samples: Sequence[Sample]) -> list[float]:
    return [float(len(sample.response)) for sample in samples]


def serving(place: BridgePlace, scorer: Any, sharded: bool) -> Callable[[Runtime], None]:
    def main(runtime: Runtime) -> None:
        if sharded:
            runtime.group = runtime.group.model_copy(update={"strategy": "fsdp2"})
        serve(runtime, place, "len", scorer, join_seconds=60.0)

    return main


def rounds(place: BridgePlace) -> Callable[[Runtime], dict[str, list[float]]]:
    def main(runtime: Runtime) -> dict[str, list[float]]:
        rewards, taken = GroupRewards(runtime, BridgeClient(runtime, place, "len", 60, 60)), {}
        for name, batch in BATCHES.items():
            count = ROUNDS if len(batch) < 1000 else ROUNDS // 10
            times = []
            for _ in range(count + 10):
                began = time.perf_counter()
                rewards.submit(batch)
                assert rewards.collect() == score(batch)
                times.append(1000 * (time.perf_counter() - began))
            taken[name] = times[10:]
        rewards.close()
        return taken

    return main


def table(folder: Path) -> None:
    print("| policy + reward ranks | request | least ms | median ms | 95 % ms |\n|---|---|---|---|---|")
    for policies, servers, sharded in SIZES:
        place = BridgePlace("127.0.0.1", free_port("port"), secrets.token_hex(16), policies)
        served = World(folder, "reward", servers, serving(place, score, sharded))
        asked = World(folder, "policy", policies, rounds(place))
        taken = asked.results(120)[0]
        served.results()
        for name, times in taken.items():
            how = f"{policies} + {servers}" + (", sharded" if sharded else "")
            last = statistics.quantiles(times, n=20)[-1]
            print(f"| {how} | {name} | {min(times):.2f} | {statistics.median(times):.2f} | {last:.2f} |", flush=True)


def found_dead(folder: Path) -> float:
    """Milliseconds."""
    place = BridgePlace("127.0.0.1", free_port("port"), secrets.token_hex(16), 1)
    begun, never = Gate(), Gate()

    def stuck(samples: Sequence[Sample]) -> list[float]:
        begun.open()
        never.wait(60)
        return score(samples)

    def main(runtime: Runtime) -> float:
        client = BridgeClient(runtime, place, "len", 60, 60)
        client.submit([["a", "b", True]])
        problem = client._receive()
        assert problem is not None
        return time.time()

    served = World(folder, "reward", 1, serving(place, stuck, False))
    asked = World(folder, "policy", 1, main)
    assert begun.wait(60)
    killed = time.time()
    served.send(signal.SIGKILL)
    return 1000 * (asked.results(60)[0] - killed)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        table(Path(name))
        print("found dead after ms:", ", ".join(f"{found_dead(Path(name)):.1f}" for _ in range(5)))
