"""This module holds what a policy asks its generator, and the answer, as messages: JSON and the bytes of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

PROTOCOL = 1


@dataclass(frozen=True)
class Weights:
    """Names the weights that a policy has after so many updates, and where they lie on this host."""

    version: int
    folder: str
    """Is a model folder of Transformers, whole."""
    adapter: str | None = None
    """Is the folder of a LoRA adapter of PEFT on top of it, where one is trained; then `folder` never changes."""


@dataclass(frozen=True)
class Request:
    """Asks for a response to each of N prompts. It holds all that the answer depends on."""

    weights: Weights
    prompts: Sequence[Sequence[int]]
    """Holds token ids."""
    seeds: np.ndarray
    """Holds a seed (N,) for each response, int64."""
    limits: np.ndarray
    """Holds the most tokens (N,) of each."""
    eos_ids: Sequence[int]
    temperature: float
    is_greedy: bool = False
    """Tells whether each token is the likeliest one, whatever the seeds."""

    def packed(self) -> tuple[dict[str, Any], bytes]:
        head = {
            "kind": "draw",
            "protocol": PROTOCOL,
            "weights": asdict(self.weights),
            "lengths": [len(prompt) for prompt in self.prompts],
            "eos_ids": list(self.eos_ids),
            "temperature": self.temperature,
            "is_greedy": self.is_greedy,
        }
        ids = np.concatenate([np.asarray(prompt, np.int64) for prompt in self.prompts])
        return head, np.concatenate([self.seeds, self.limits, ids]).astype("<i8").tobytes()

    @classmethod
    def unpacked(cls, head: dict[str, Any], body: bytes) -> Request:
        numbers, lengths = np.frombuffer(body, "<i8"), head["lengths"]
        seeds, limits, ids = np.split(numbers, [len(lengths), 2 * len(lengths)])
        prompts = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
        rest = {name: head[name] for name in ("eos_ids", "temperature", "is_greedy")}
        return cls(Weights(**head["weights"]), prompts, seeds, limits, **rest)


@dataclass(frozen=True)
class Answer:
    """Holds N responses, each up to its limit or an EOS, which is part of it."""

    tokens: Sequence[Sequence[int]]
    """Holds token ids."""
    logprobs: Sequence[Sequence[float]]
    """Holds the log-probability of each token in nats, under the engine's distribution at the temperature."""

    def packed(self) -> tuple[dict[str, Any], bytes]:
        ids = np.concatenate([np.asarray(row, "<i8") for row in self.tokens])
        logprobs = np.concatenate([np.asarray(row, "<f8") for row in self.logprobs])
        head = {"kind": "drawn", "lengths": [len(row) for row in self.tokens]}
        return head, ids.tobytes() + logprobs.tobytes()

    @classmethod
    def unpacked(cls, head: dict[str, Any], body: bytes) -> Answer:
        ends = np.cumsum(head["lengths"])
        ids = np.frombuffer(body, "<i8", count=int(ends[-1]))
        logprobs = np.frombuffer(body, "<f8", offset=ids.nbytes)
        parts = (np.split(numbers, ends[:-1]) for numbers in (ids, logprobs))
        tokens, of_tokens = ([part.tolist() for part in each] for each in parts)
        return cls(tokens, of_tokens)
