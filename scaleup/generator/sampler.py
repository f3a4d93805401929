"""This module draws within vLLM: a processor of logits leaves one token a row, that which the policy itself would have
drawn, and keeps its log-probability, which vLLM would give without the temperature or with the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from scaleup.models.gumbel import draw

LOGPROBS: dict[int, dict[int, float]] = {}
"""Maps the row of a request -> the log-probabilities, in nats, of the tokens drawn for it, by their positions."""


@dataclass(frozen=True)
class Row:
    """Is what a response's tokens are drawn by."""

    number: int
    seed: int
    temperature: float
    drawn: Sequence[int]
    """Holds the tokens so far; vLLM appends to it."""


class GumbelSampler(LogitsProcessor):
    """Draws the token of each row by `scaleup.models.gumbel.draw`. Requests without a seed are left as they are."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, Row] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        process_dict_updates(self._rows, batch_update, _row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns logits (n, V) of which each row with a seed has one that is not -inf."""
        if not self._rows:
            return logits
        places, rows = list(self._rows), list(self._rows.values())
        seeds = torch.tensor([row.seed for row in rows], device=logits.device)
        positions = torch.tensor([len(row.drawn) for row in rows], device=logits.device)
        at = torch.tensor(places, device=logits.device)
        scores, temperature = logits[at].float(), rows[0].temperature  # that of all rows of a request to us
        drawn = draw(scores, seeds, positions, temperature)
        logprobs = (scores / temperature).log_softmax(dim=-1).gather(1, drawn[:, None]).squeeze(1)
        for row, logprob in zip(rows, logprobs.tolist(), strict=True):
            LOGPROBS.setdefault(row.number, {})[len(row.drawn)] = logprob
        logits[at] = -torch.inf
        logits[at, drawn] = 0.0
        return logits


def _row(params: Any, prompt_ids: list[int] | None, output_ids: list[int]) -> Row | None:
    extra = params.extra_args or {}
    if "seed" not in extra:
        return None
    return Row(extra["row"], extra["seed"], extra["temperature"], output_ids)


class LogprobsTaken:
    """Is what vLLM's workers can be asked beside their own: an extension of their class."""

    def take_logprobs(self) -> dict[int, list[float]]:
        """Returns the log-probabilities by row, in the order of tokens, and forgets them."""
        taken = {number: [by[place] for place in sorted(by)] for number, by in LOGPROBS.items()}
        LOGPROBS.clear()
        return taken
