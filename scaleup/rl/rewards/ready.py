"""This module holds reward functions that need not be written: `function: "builtin:NAME"`. Each is made with the
source's `arguments`, and then called as TRL's GRPO calls reward functions: lists go in, a float a completion comes out.

It is loaded as a file, in a process that has little else: it imports nothing of this package."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

Reward = Callable[..., list[float]]
THINK = re.compile(r"^<think>(?!.*<think>)(.*?)</think>.*$", re.DOTALL | re.MULTILINE)
"""Is the pattern of TRL's `think_format_reward`."""


def length(target: int = 0) -> Reward:
    """Return minus the number of tokens that a completion, with its EOS, is away from `target`: the penalty of
    LCPO-Exact (Aggarwal and Welleck 2025), whose alpha is the reward's weight. By default, minus its tokens."""

    def reward(completion_ids: Sequence[Sequence[int]]) -> list[float]:
        return [-float(abs(len(ids) - target)) for ids in completion_ids]

    return reward


def format() -> Reward:
    """Return 1 where a completion is `<think>...</think>` and what follows, else 0: TRL's `think_format_reward`."""

    def reward(completions: Sequence[Any]) -> list[float]:
        return [float(THINK.match(text) is not None) for text in map(_text, completions)]

    return reward


def regex(pattern: str, full: bool = False) -> Reward:
    """Return 1 where a pattern of Python's `re` is found in a completion, or with `full` matches the whole of it, else
    0."""
    found = re.compile(pattern).fullmatch if full else re.compile(pattern).search

    def reward(completions: Sequence[Any]) -> list[float]:
        return [float(found(text) is not None) for text in map(_text, completions)]

    return reward


def contains(column: str = "answer", text: str | None = None, ignore_case: bool = False) -> Reward:
    """Return 1 where a completion holds `text`, or without it the value of its row's `column`, else 0."""

    def reward(completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        wanted = _column(columns, column) if text is None else [text] * len(completions)
        pairs = [(str(part), _text(completion)) for part, completion in zip(wanted, completions, strict=True)]
        if ignore_case:
            pairs = [(part.casefold(), whole.casefold()) for part, whole in pairs]
        return [float(part in whole) for part, whole in pairs]

    return reward


def repetition(ngram_size: int = 3, max_penalty: float = -1.0) -> Reward:
    """Return (1 - unique n-grams / n-grams) * max_penalty over the tokens of a completion; 0 for one of fewer tokens
    than an n-gram has: TRL's `get_repetition_penalty_reward` (Yeo et al. 2025, appendix C.2)."""
    if max_penalty > 0 or ngram_size < 1:
        raise ValueError("ngram_size is at least 1, and max_penalty at most 0")

    def reward(completion_ids: Sequence[Sequence[int]]) -> list[float]:
        return [max_penalty * _repeated(ids, ngram_size) for ids in completion_ids]

    return reward


def math(column: str = "solution") -> Reward:
    """Return 1 where the answer of a completion equals that of its row's `column`, as math-verify tells, else 0: TRL's
    `accuracy_reward`, but for a solution without an answer, which TRL leaves out and this refuses."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    written = LatexExtractionConfig(
        normalization_config=NormalizationConfig(units=True),
        boxed_match_priority=0,
        try_extract_without_anchor=False,
    )

    def reward(completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        return [one(_text(text), str(gold)) for text, gold in zip(completions, _column(columns, column), strict=True)]

    def one(text: str, solution: str) -> float:
        gold = parse(solution, parsing_timeout=10)
        if not gold:
            raise ValueError(f"{column} {solution[:80]!r} holds no answer that math-verify can read")
        answer = parse(text, extraction_config=[written], extraction_mode="first_match", parsing_timeout=10)
        return float(verify(gold, answer, timeout_seconds=5))

    return reward


def _text(completion: Any) -> str:
    """Return the text of a completion: itself, or that of its one message."""
    return completion if isinstance(completion, str) else str(completion[0]["content"])


def _column(columns: dict[str, Sequence[Any]], name: str) -> Sequence[Any]:
    if name not in columns:
        raise ValueError(f"the rows have no column {name}; they have {', '.join(columns) or 'none but the prompt'}")
    return columns[name]


def _repeated(ids: Sequence[int], size: int) -> float:
    grams = list(zip(*(ids[start:] for start in range(size)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
