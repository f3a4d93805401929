"""Of a long text the first tokens alone: they are those of the whole, of every tokenizer of which that can be told."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import tokenization_utils_base

from scaleup.data import text as module
from scaleup.data.cuts import Cuts
from scaleup.data.text import TextEncoder
from tests.unit.data.families import byte_level, of_family

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PIECES = (
    "cat",
    " is it:good",
    " ",
    "\n",
    "  ",
    "'s",
    "A\u0301",
    " \u0301",
    "1234",
    "é",
    "<|user|>",
    "</s>",
    ".",
    "Name",
)
TEXTS = [" ".join(random.Random(seed).choices(PIECES, k=60)) for seed in range(12)]
SIZES = (1, 2, 7, 30)


def split_by(expression: str, normalizer: Any = None) -> Any:
    """Returns a tokenizer that splits a text by an expression, as Qwen's do."""
    tokenizer = byte_level(normalizer=normalizer)
    steps = [pre_tokenizers.Split(Regex(expression), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), *steps])
    return tokenizer


KNOWN: dict[str, Callable[[], Any]] = {
    **{
        name: partial(of_family, name)
        for name in ("byte-level", "byte-level, eos", "byte-level, bos and eos", "byte-level, NFKC")
    },
    **{name: partial(of_family, name) for name in ("byte-level, prefix space", "markers", "markers, lstrip")},
    "qwen": lambda: split_by(QWEN, normalizers.NFC()),
}
UNKNOWN = ("byte-level, across words", "metaspace first", "legacy", "unigram", "word piece", "slow", "markers, rstrip")


@pytest.fixture(params=KNOWN)
def encoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TextEncoder:
    """It cuts short texts too."""
    monkeypatch.setattr(module, "CHARACTERS_PER_TOKEN", 3)
    monkeypatch.setattr(module, "BESIDE", 1)
    return TextEncoder(KNOWN[request.param]())


@pytest.mark.parametrize("most", SIZES)
def test_the_first_tokens_are_those_of_the_whole(encoder: TextEncoder, most: int) -> None:
    num_shorter = 0
    for special in (True, False):
        for whole, first in zip(encoder.encode(TEXTS, special), encoder.encode(TEXTS, special, most), strict=True):
            assert first[: most + 1] == whole[: most + 1]
            num_shorter += len(first) < len(whole)
    assert num_shorter > len(TEXTS) // 2, "otherwise nothing would be saved"


@pytest.mark.parametrize("most", SIZES)
def test_what_is_learned_is_the_same(encoder: TextEncoder, most: int) -> None:
    spanned = [(text, [(3, 20), (40, len(text))]) for text in TEXTS]
    for whole, first in zip(encoder.masked(spanned), encoder.masked(spanned, most), strict=True):
        assert [part[: most + 1] for part in first] == [part[: most + 1] for part in whole]
    pairs = [(text[:size], text[size:]) for text in TEXTS for size in (0, 5, 18, 60)]
    for whole, first in zip(encoder.continued(pairs), encoder.continued(pairs, most), strict=True):
        assert [*first[0], *first[1]][: most + 1] == [*whole[0], *whole[1]][: most + 1]
        assert len(first[0]) > most or first[0] == whole[0]


def test_what_spans_the_end_of_a_prompt_is_seen_beside_it(encoder: TextEncoder) -> None:
    seen = set()
    for text in TEXTS[:3]:
        for size in range(len(text) // 2):
            start, whole = encoder.encode([text[:size], text])
            seen.add(spans := whole[: len(start)] != start)
            assert encoder.spans_end(text[:size], text) == spans
    assert seen == {True, False}


@pytest.mark.parametrize("family", UNKNOWN)
def test_of_other_tokenizers_the_whole_is_read(family: str) -> None:
    cuts = Cuts(of_family(family))
    assert (cuts.behind("the cat sat", 2), cuts.before("the cat sat", 9)) == (11, 0)


@pytest.mark.parametrize("expression", [r"\p{L}+ \p{L}+|\s+", r" ?\p{L}+|(?=a).", r"\p{N}|\s+", "x"])
def test_expressions_that_are_not_known_say_nothing(expression: str) -> None:
    assert Cuts(split_by(expression)).behind("the cat sat", 2) == 11
    assert Cuts(split_by(QWEN)).behind("the cat sat", 2) == 3


def test_a_text_without_spaces_is_read_whole(encoder: TextEncoder) -> None:
    text = "cat" * 500
    assert encoder.encode([text], most=5) == encoder.encode([text])


def test_a_long_text_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's positions are the plan's to compare with."""
    warned: list[str] = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", warned.append)
    tokenizer = byte_level()
    tokenizer.model_max_length = 4
    TextEncoder(tokenizer).encode(["the cat is good " * 9])
    TextEncoder(tokenizer).masked([("the cat is good " * 9, [])])
    assert warned == []
