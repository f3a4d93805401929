"""Log-probabilities and entropies of tokens from hidden states, forward and backward: ours against TRL's kernel and all
logits at once.

    .venv/bin/python benchmarks/token_head.py

1,024 positions, hidden size 576, vocabulary 49,152, two threads, by turns; the median of the repetitions, and the most
that a process of its own grew by. With and without a gradient of the entropies: PPO without an entropy bonus, and the
preference losses, need none. A frozen head is what an adapter has."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from scaleup.train.token_head import linear_logprobs

POSITIONS, WIDTH, VOCABULARY, REPEAT = 1024, 576, 49_152, 4


def ours(hidden: Any, weight: Any, tokens: Any, learns_entropy: bool) -> Any:
    return linear_logprobs(hidden, weight, None, tokens, 1.0, learns_entropy)


def trl(hidden: Any, weight: Any, tokens: Any, learns_entropy: bool) -> Any:
    from trl.kernels import ChunkedLogProbFunction

    return ChunkedLogProbFunction.apply(hidden, weight, None, tokens, 1.0, 8192, None, 1.0, ("entropy",))[:2]


def whole(hidden: Any, weight: Any, tokens: Any, learns_entropy: bool) -> Any:
    log_p = torch.log_softmax(F.linear(hidden, weight).float(), dim=1)
    return log_p.gather(1, tokens[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(dim=1)


LEARNS = ("log-probabilities", "entropies, too", "frozen head")
FUNCTIONS = {"ours": ours, "TRL 1.16 ChunkedLogProbFunction": trl, "all logits at once": whole}


def once(name: str, precision: str, learns: str) -> float:
    """Returns the seconds of a forward and backward pass."""
    hidden, weight = (torch.randn(size, WIDTH).requires_grad_() for size in (POSITIONS, VOCABULARY))
    weight.requires_grad_(learns != "frozen head")
    learns_entropy = learns == "entropies, too"
    tokens = torch.arange(POSITIONS) * 47 % VOCABULARY
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        logprobs, entropies = FUNCTIONS[name](hidden, weight, tokens, learns_entropy)
    (logprobs + (0.01 * entropies if learns_entropy else 0.0)).sum().backward()
    return time.perf_counter() - started


def growth(case: tuple[str, str, str]) -> float:
    """Returns by how many MiB a pass makes a process grow, above weights, hidden states and their gradients."""
    held = 2 * 4 * (POSITIONS + VOCABULARY) * WIDTH / 2**20
    before = most_resident()
    once(*case)
    return most_resident() - before - held


def most_resident() -> float:
    """Returns the most MiB that this process has had in memory; a child's `ru_maxrss` would start as its parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def main() -> None:
    torch.set_num_threads(2)
    cases = [
        (name, precision, learns) for precision in ("float32", "bfloat16") for learns in LEARNS for name in FUNCTIONS
    ]
    seconds: dict[Any, list[float]] = {case: [] for case in cases}
    for number in range(1 + REPEAT):
        for case in cases:
            took = once(*case)
            if number:
                seconds[case].append(took)
    context = multiprocessing.get_context("spawn")
    print("| | precision | learns | seconds | MiB |\n|---|---|---|---|---|")
    for case in cases:
        with context.Pool(1) as pool:
            mib = pool.apply(growth, (case,))
        print(f"| {case[0]} | {case[1]} | {case[2]} | {median(seconds[case]):.2f} | {mib:.0f} |", flush=True)


if __name__ == "__main__":
    main()
