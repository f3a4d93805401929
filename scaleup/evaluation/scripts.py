"""Texts of any script go in; the words that ROUGE counts, and the places where a label stands, come out."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Protocol

import regex

UNSPACED = "".join(
    rf"\p{{scx={script}}}"
    for script in (
        "Han",
        "Hira",
        "Kana",
        "Bopo",
        "Yiii",
        "Thai",
        "Laoo",
        "Khmr",
        "Mymr",
        "Java",
        "Bali",
        "Lana",
        "Talu",
    )
)
"""Names, for a character class, the scripts that are written without spaces between words."""
SPACED = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{UNSPACED}]]"
LETTER = rf"[[\p{{L}}\p{{N}}]--[{UNSPACED}]]"
WORD = regex.compile(
    rf"(?V1){LETTER}(?:[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]]|[\u200c\u200d](?=[\p{{L}}\p{{M}}\p{{N}}]))*"
    rf"|[[\p{{L}}\p{{N}}]&&[{UNSPACED}]]\p{{M}}*"
)
"""Matches a word, with its vowel signs and joiners, or a character of a script without spaces."""
IS_UNSPACED = regex.compile(rf"(?V1)[{UNSPACED}]")
IS_HANGUL = regex.compile(r"\p{scx=Hang}")
OTHER_LETTER = regex.compile(r"(?V1)[[\p{L}\p{N}]--[a-zA-Z0-9]]")
WIDTHS = regex.compile("[\uff00-\uffef]+")
VARIANTS = regex.compile(r"\p{VS}")


class RougeTokenizer(Protocol):
    name: str

    def tokenize(self, text: str) -> list[str]: ...


def rouge_tokenizer(references: Iterable[str]) -> RougeTokenizer:
    """Return what cuts texts into words for ROUGE: rouge_score's own tokenizer where references have no letters but
    a to z and no digits but 0 to 9, which are all that it keeps; else one for all scripts."""
    return UnicodeTokenizer() if any(map(OTHER_LETTER.search, references)) else DefaultTokenizer()


class DefaultTokenizer:
    """Cuts as rouge_score does: words of a to z and 0 to 9, those of more than 3 characters stemmed (Porter 1980)."""

    name = "default"

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._inner: Any = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        return list(self._inner.tokenize(text))


class UnicodeTokenizer:
    """Cuts into the words of any script; into characters where no spaces stand between words. Words of a to z and 0 to
    9 are those of `DefaultTokenizer`."""

    name = "unicode"

    def __init__(self) -> None:
        self._default = DefaultTokenizer()

    def tokenize(self, text: str) -> list[str]:
        words = WORD.findall(folded(text))
        return [part for word in words for part in (self._default.tokenize(word) if word.isascii() else [word])]


def folded(text: str) -> str:
    """Return the text as all texts that count as equal to it: in one case, one width and one spelling of accents."""
    text = WIDTHS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), VARIANTS.sub("", text))
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def place_of(label: str, text: str) -> int | None:
    """Return where a folded text has a label first, as a whole word in any case; None where it has not. In a script
    without spaces any place will do, and in Korean any end, to which particles are attached."""
    match = _pattern(label).search(text)
    return match.start() if match else None


@lru_cache(maxsize=1024)
def _pattern(label: str) -> Any:
    label = folded(label)
    before = "" if IS_UNSPACED.match(label[0]) else rf"(?<!{SPACED})"
    after = rf"(?!{SPACED})"
    if IS_UNSPACED.match(label[-1]) or IS_HANGUL.match(label[-1]):
        after = r"(?!\p{M})"
    return regex.compile(f"(?V1){before}{regex.escape(label)}{after}")
