"""A long text goes in; where it can be cut so that no token on either side becomes another one comes out.

That can be said of byte-level tokenizers that first split a text at words, by expressions that are known here, as those
of GPT-2, Llama 3 and Qwen do: an ASCII letter and the space behind it are never in one piece, what is found before them
depends on nothing behind them, and no normal form of Unicode joins them. Of others nothing is said: in SentencePiece's
one piece a choice may reach any distance, an unknown word has any length, and a normalizer may take spaces away."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

from tokenizers import models
from transformers import PreTrainedTokenizerBase

LETTERS = (r"\p{L}+", r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+")
OTHERS = (
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"),
    *(r"\p{N}", r"\p{N}{1,3}", r"\p{N}+", r" ?\p{N}+"),
    *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"),
    *(r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
)
"""Are alternatives of expressions that find pieces. None finds a letter and a space behind it, or looks further than a
character on; those of LETTERS find every letter."""
ALTERNATIVE = re.compile(r"\|(?![^()]*\))")
NORMAL_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
BORDER = re.compile(r"(?<=[A-Za-z]) ", re.ASCII)
NEAR = 4096
"""Characters before a place among which a cut is sought."""


class Cuts:
    """Finds the cuts of texts that one tokenizer reads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def behind(self, text: str, place: int) -> int:
        """Returns the first cut of a text at a place or behind it; its end where none is known."""
        found = BORDER.search(text, place) if place < len(text) and self._are_known else None
        return found.start() if found else len(text)

    def before(self, text: str, place: int) -> int:
        """Returns the last cut of a text before a place; its beginning where none is known."""
        near = text[max(0, place - NEAR) : max(0, place)]
        found = [border.start() for border in BORDER.finditer(near)] if self._are_known else []
        return place - len(near) + found[-1] if found else 0

    @cached_property
    def _are_known(self) -> bool:
        backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None or not isinstance(backend.model, models.BPE) or backend.model.dropout:
            return False
        added = self._tokenizer.added_tokens_decoder.values()
        if any(how.rstrip or re.search(r"\s", how.content) for how in added):
            return False
        forms = {step["type"] for step in _steps(backend.normalizer, "normalizers")}
        return forms.issubset(NORMAL_FORMS) and _splits_at_words(_steps(backend.pre_tokenizer, "pretokenizers"))


def _steps(part: Any, name: str) -> list[dict[str, Any]]:
    """Returns what a part of a tokenizer does, step by step; nothing of one that is not there."""
    state = json.loads(part.__getstate__()) if part is not None else {name: []}
    return list(state.get(name, [state]))


def _splits_at_words(steps: list[dict[str, Any]]) -> bool:
    """Returns whether a text is split by expressions that are known alone, letters by one of them, and written in
    bytes."""
    are_split, are_bytes = False, False
    for step in steps:
        if step["type"] == "ByteLevel":
            are_split, are_bytes = are_split or step["use_regex"], True
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not (step["invert"] or are_bytes):
            alternatives = set(ALTERNATIVE.split(step["pattern"].get("Regex", "")))
            if not alternatives.issubset((*LETTERS, *OTHERS)):
                return False
            are_split = are_split or not alternatives.isdisjoint(LETTERS)
        elif step["type"] != "Digits":
            return False
    return are_split and are_bytes
