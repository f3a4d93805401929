"""Texts of any script go in; the words that ROUGE counts, and the places where a label stands, come out."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
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
SIGN = regex.compile(
    r"(?V1)\p{RI}{2}"
    r"|[[\p{Sm}\p{Sc}\p{So}\p{Emoji}]--[\p{ASCII}\p{RI}\p{Emoji_Modifier}]][\p{M}\p{Emoji_Modifier}\U000e0020-\U000e007f]*"
    r"(?:\u200d\p{Emoji}[\p{M}\p{Emoji_Modifier}]*)*"
)
"""Matches an emoji, with all that is joined to it, a flag, or another sign (→, €) that is not of ASCII."""
IS_UNSPACED = regex.compile(rf"(?V1)[{UNSPACED}]")
IS_HANGUL = regex.compile(r"\p{scx=Hang}")
TOKEN = regex.compile(f"{WORD.pattern}|{SIGN.pattern}")
OTHER_LETTER = regex.compile(r"(?V1)[[\p{L}\p{N}]--[a-zA-Z0-9]]")
DEFAULT_LETTER = regex.compile("[a-zA-Z0-9]")
FORMS = regex.compile("[\ufb50-\ufdff\ufe70-\ufefc\uff00-\uffef]+")
"""Matches characters in another form than they are written in: Arabic by its place in a word, of full or half width."""
VARIANTS = regex.compile(r"\p{VS}")


class RougeTokenizer(Protocol):
    name: str

    def tokenize(self, text: str) -> list[str]: ...


def rouge_tokenizer(references: Iterable[str]) -> RougeTokenizer:
    """Return what cuts texts into words for ROUGE: rouge_score's own tokenizer where references have no letters but
    a to z and no digits but 0 to 9, which are all that it keeps; else, and where one has nothing but emoji and signs,
    one for all scripts."""
    return UnicodeTokenizer() if any(map(_is_lost, references)) else DefaultTokenizer()


def _is_lost(reference: str) -> bool:
    """Return whether rouge_score's own tokenizer drops what stands for words in a text."""
    if OTHER_LETTER.search(reference):
        return True
    return not DEFAULT_LETTER.search(reference) and SIGN.search(reference) is not None


class DefaultTokenizer:
    """Cuts as rouge_score does: words of a to z and 0 to 9, those of more than 3 characters stemmed (Porter 1980)."""

    name = "default"

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._inner: Any = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        return list(self._inner.tokenize(text))


class UnicodeTokenizer:
    """Cuts into the words of any script, emoji and signs; into characters where no spaces stand between words. Words of
    a to z and 0 to 9 are those of `DefaultTokenizer`."""

    name = "unicode"

    def __init__(self) -> None:
        self._default = DefaultTokenizer()

    def tokenize(self, text: str) -> list[str]:
        words = TOKEN.findall(folded(text))
        return [part for word in words for part in (self._default.tokenize(word) if word.isascii() else [word])]


def words(text: str) -> list[str]:
    """Return the words of any script, as they are counted for all metrics but ROUGE: not stemmed."""
    return list(TOKEN.findall(folded(text)))


def folded(text: str) -> str:
    """Return the text as all texts that count as equal to it: in one case, one width and one spelling of accents."""
    text = FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), VARIANTS.sub("", text))
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


OPTIONAL = regex.compile(
    "[\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]|(?<=i)\u0307"
)
"""Matches what may be left out of a word: vowel signs, hamza and tatweel of Arabic, points of Hebrew; and the dot that
is left of a Turkish İ in lower case."""
ARTICLES = {"Arab": "(?:[وف]?(?:[بك]?ال|لل))?", "Hebr": "(?:ו?ה)?"}
"""Maps a script -> the article that is written as one word with what follows, and with what stands before it."""
SCRIPT = {script: regex.compile(rf"\p{{scx={script}}}") for script in ARTICLES}


@lru_cache(maxsize=64)
def label_fold(labels: frozenset[str]) -> Callable[[str], str]:
    """Return what makes texts and these labels comparable: without what may be left out of words, and without the
    difference between i and the Turkish ı, unless that makes two labels one."""
    as_written, loose = set(map(folded, labels)), set(map(_loosely_folded, labels))
    return _loosely_folded if len(loose) == len(as_written) and "" not in loose else folded


def _loosely_folded(text: str) -> str:
    text = OPTIONAL.sub("", unicodedata.normalize("NFD", folded(text)))
    return unicodedata.normalize("NFC", text.replace("ı", "i"))


def place_of(label: str, text: str) -> int | None:
    """Return where a text has a label first, both folded alike, as a whole word; None where it has not. In a script
    without spaces any place will do, in Korean any end, to which particles are attached, and in Arabic and Hebrew the
    article may be attached to its begin."""
    match = _pattern(label).search(text)
    return match.start() if match else None


@lru_cache(maxsize=1024)
def _pattern(label: str) -> Any:
    before = "" if IS_UNSPACED.match(label[0]) else rf"(?<!{SPACED})"
    before += next((article for script, article in ARTICLES.items() if SCRIPT[script].match(label[0])), "")
    after = rf"(?!{SPACED})"
    if IS_UNSPACED.match(label[-1]) or IS_HANGUL.match(label[-1]):
        after = r"(?!\p{M})"
    return regex.compile(f"(?V1){before}{regex.escape(label)}{after}")
