"""ROUGE's words and labels in texts of every script."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from scaleup.evaluation.metrics import first_label, score_answers
from scaleup.evaluation.scripts import UnicodeTokenizer, rouge_tokenizer

WORDS = {
    "Chinese": ("第3章:GPT-4很好。", ["第", "3", "章", "gpt", "4", "很", "好"]),
    "Japanese": ("スーパーで々を買う", ["ス", "ー", "パ", "ー", "で", "々", "を", "買", "う"]),
    "Thai": ("น้ำดีมาก", ["น้", "ำ", "ดี", "ม", "า", "ก"]),
    "Lao, Khmer, Burmese": ("ດີ ល្អ ကောင်း", ["ດີ", "ល្", "អ", "ကော", "င်း"]),
    "Hindi": ("यह फिल्म अच्छी है।", ["यह", "फिल्म", "अच्छी", "है"]),
    "Bengali and Tamil": ("ভালো நல்ல", ["ভালো", "நல்ல"]),
    "Arabic": ("هذا فيلمٌ جيّد، نعم", ["هذا", "فيلمٌ", "جيّد", "نعم"]),
    "Persian, with a joiner": ("می‌خواهم", ["می‌خواهم"]),
    "Hebrew": ("סרט טוב", ["סרט", "טוב"]),
    "Russian": ("Хороший фильм, ёлка!", ["хороший", "фильм", "ёлка"]),
    "Korean": ("좋은 영화입니다", ["좋은", "영화입니다"]),
    "Greek": ("Καλή ταινία", ["καλή", "ταινία"]),
    "Latin with accents": ("Été à la plage, naïvely running", ["été", "à", "la", "plage", "naïvely", "run"]),
    "of full and half width": ("ＡＢＣ１２ ｶﾞ", ["abc12", "ガ"]),
    "signs and emoji": ("❤️ – « … » 👍🏽→€", ["❤", "👍🏽", "→", "€"]),
    "emoji of several": ("👨‍👩‍👧🇩🇪🇫🇷🏴󠁧󠁢󠁥󠁮󠁧󠁿", ["👨‍👩‍👧", "🇩🇪", "🇫🇷", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]),
    "punctuation": ("« … » -+=#*?", []),
}


def figures_of(metrics, answers, references, labels=None):
    scores = score_answers(metrics, answers, references, labels)
    return {name: value for each in scores for name, value in each.result(0).items()}


def rouge(answers, references):
    return figures_of(["rouge"], answers, references)


@pytest.mark.parametrize(("text", "words"), WORDS.values(), ids=WORDS)
def test_words(text, words):
    assert UnicodeTokenizer().tokenize(text) == [unicodedata.normalize("NFC", word) for word in words]
    assert UnicodeTokenizer().tokenize(unicodedata.normalize("NFD", text)) == UnicodeTokenizer().tokenize(text)


@given(st.text(st.characters(codec="ascii") | st.sampled_from("“”’–—…·")))
def test_where_letters_are_ascii_words_are_those_of_rouge_score(text):
    assert rouge_tokenizer([text]).name == "default"
    assert UnicodeTokenizer().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


def test_emoji_count_where_a_reference_has_nothing_else_or_other_letters():
    assert rouge_tokenizer(["great 👍", "5 €"]).name == "default", "as rouge_score, which drops them"
    assert rouge_tokenizer(["great", "👍"]).name == rouge_tokenizer(["très 👍"]).name == "unicode"
    scores = rouge(["👍", "👎"], ["👍", "👍"])
    assert scores["rouge1"] == scores["rougeL"] == 50 and "references_without_word" not in scores


REFERENCES = [text for text, words in WORDS.values() if words]


@pytest.mark.parametrize("text", REFERENCES)
def test_the_reference_itself_has_100_and_another_text_0(text):
    same, other = rouge([text], [text]), rouge(["zzz"], [text])
    assert same == {
        "rouge1": 100,
        "rouge2": 100 if " " in text or len(UnicodeTokenizer().tokenize(text)) > 1 else 0,
    } | {
        "rougeL": 100,
        "rougeLsum": 100,
        "rouge_tokenizer": "unicode",
    }
    assert other["rouge1"] == other["rougeL"] == 0


def test_rouge_of_chinese_in_numbers():
    """Of 7 characters 5 are the same, 3 of 6 pairs, all 5 in order."""
    scores = rouge(["这是积极的评论"], ["这是消极的评论"])
    assert scores["rouge1"] == pytest.approx(100 * 6 / 7) and scores["rouge2"] == pytest.approx(100 * 4 / 6)
    assert scores["rougeL"] == pytest.approx(100 * 6 / 7)


def test_english_is_that_of_rouge_score_and_named():
    answers, references = ["the cats sat – “here”", "Ça va"], ["the cat sat on 'the' mat", "fine: it's 5 o'clock"]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    expected = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    scores = rouge(answers, references)
    assert scores.pop("rouge_tokenizer") == "default"
    assert scores == {kind: pytest.approx(50 * sum(row[kind].fmeasure for row in expected)) for kind in scores}


@pytest.mark.parametrize(
    ("answer", "labels", "label"),
    [
        ("这是消极的评论", ["积极", "消极"], "消极"),
        ("这是不积极的", ["积极", "不积极"], "不积极"),
        ("これは良いです", ["悪い", "良い"], "良い"),
        ("結果はAIです", ["AI"], "AI"),
        ("類別A級", ["B", "A"], "A"),
        ("第10类", ["1", "10"], "10"),
        ("เป็นบวกมาก", ["ลบ", "บวก"], "บวก"),
        ("กำ", ["ก"], "ก"),
        ("กี", ["ก"], None),  # another sign on it makes another character
        ("यह सकारात्मक है", ["नकारात्मक", "सकारात्मक"], "सकारात्मक"),
        ("नकारात्मकता", ["नकारात्मक"], None),  # within a word
        ("अच्छा", ["अच्छ"], None),
        ("هذا إيجابي.", ["سلبي", "إيجابي"], "إيجابي"),
        ("Отзыв: ПОЛОЖИТЕЛЬНЫЙ", ["отрицательный", "положительный"], "положительный"),
        ("неположительный", ["положительный"], None),
        ("이 영화는 긍정적입니다", ["부정", "긍정"], "긍정"),
        ("비긍정", ["긍정"], None),
        ("ＰＯＳＩＴＩＶＥ", ["positive"], "positive"),
        (unicodedata.normalize("NFD", "C'est négatif"), ["négatif"], "négatif"),
        ("GROSS", ["groß"], "groß"),
        ("إِيجَابِيّ", ["سلبي", "إيجابي"], "إيجابي"),  # with vowel signs, as in the label or not
        ("هذا ايجابي", ["سلبيّ", "إِيجَابِيّ"], "إِيجَابِيّ"),
        ("إيجـــابي", ["سلبي", "إيجابي"], "إيجابي"),  # stretched
        ("ﺇﻳﺠﺎﺑﻲ", ["سلبي", "إيجابي"], "إيجابي"),  # in the forms of print
        ("الإيجابي", ["سلبي", "إيجابي"], "إيجابي"),  # with the article
        ("وبالسلبي", ["سلبي", "إيجابي"], "سلبي"),
        ("للسلبي", ["سلبي", "إيجابي"], "سلبي"),
        ("مسلبي", ["سلبي"], None),
        ("חִיּוּבִי", ["שלילי", "חיובי"], "חיובי"),
        ("שְׁלִילִי", ["שלילי", "חיובי"], "שלילי"),
        ("התשובה: החיובי", ["שלילי", "חיובי"], "חיובי"),
        ("كُتِبَ", ["كَتَبَ", "كُتِبَ"], "كُتِبَ"),  # labels that signs alone tell apart
        ("كتب", ["كَتَبَ", "كُتِبَ"], None),
        ("İYİ", ["kötü", "iyi"], "iyi"),
        ("iyi", ["KÖTÜ", "İYİ"], "İYİ"),
        ("KIZGIN", ["kızgın", "mutlu"], "kızgın"),
        ("kızgın", ["KIZGIN", "mutlu"], "KIZGIN"),
    ],
)
def test_labels_of_every_script(answer, labels, label):
    assert first_label(answer, labels) == label
    assert first_label(answer, labels[::-1]) == label


def test_answers_that_are_the_references():
    texts = [f"这是{'积消'[number % 2]}极的评论" for number in range(4)]
    labels = ["积极", "消极"]
    figures = figures_of(["exact_match", "rouge", "accuracy"], texts, texts, labels)
    assert figures.pop("answers_without_label") == 0
    rouges = dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), 100)
    assert figures == {"accuracy": 1, "exact_match": 1, **rouges, "rouge_tokenizer": "unicode"}
    others = texts[1:] + texts[:1]
    assert figures_of(["accuracy"], texts, others, labels) == {"accuracy": 0, "answers_without_label": 0}


def test_digits_of_other_scripts_are_words() -> None:
    """rouge_score keeps 0 to 9 alone."""
    assert rouge_tokenizer(["٣٤"]).name == "unicode" and rouge_tokenizer(["34"]).name == "default"
    assert rouge_tokenizer(["٣٤"]).tokenize("٣٤ ٥") == ["٣٤", "٥"]
