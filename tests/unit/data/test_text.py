"""One way from text to tokens: for tokenizers of every family, what is trained is what the tokenizer makes of the whole
text, what is learned is what was meant, and what is decoded is what was written."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from scaleup.data.text import TextEncoder
from scaleup.data.tokenization import IGNORE, Encoder
from scaleup.models.generation import answer_ends, answer_texts
from scaleup.records.chats import Chat
from scaleup.records.examples import PlainText, PromptCompletion
from tests.unit.data import tiny
from tests.unit.data.families import BOS, EOS, FAMILIES, TEMPLATE, of_family

every_family = pytest.mark.parametrize("name", FAMILIES)
LOSSY = ("word piece", "unigram", "unigram, nothing added")
"""They leave out spaces and know few characters."""
SWALLOWING = ("markers, rstrip", "markers, both strip, metaspace", "phi")
"""Their markers swallow the space behind them, as ByT5's eos does."""
few = settings(max_examples=12)
PIECES = (
    *"ab:,.\n é中",
    " ",
    "The cat",
    " very",
    "good",
    "is it",
    " positive",
    "Zß",
    "🙂",
    "e\u0301",
    "ﬁ",
    "<|user|>",
    "  ",
)
words = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)
with_specials = st.lists(st.sampled_from((*PIECES, BOS, EOS)), min_size=1, max_size=8).map("".join)


@st.composite
def chats(draw: st.DrawFn) -> Chat:
    roles = ["system"] * draw(st.booleans()) + ["user", "assistant"] * draw(st.integers(1, 3))
    return Chat([{"role": role, "content": draw(words)} for role in roles])


def encoder(name: str, **keys: object) -> Encoder:
    return Encoder(of_family(name), "causal_lm", tiny.data_config(**{"max_length": 2000, **keys}))


def read(text: TextEncoder, ids: Sequence[int]) -> str:
    return text.tokenizer.decode(ids, skip_special_tokens=True)


@every_family
@few
@given(chat=chats())
def test_a_chats_row_is_what_transformers_makes_of_it(name: str, chat: Chat) -> None:
    """And its generation starts from tokens that Transformers starts from."""
    tokenizer, encode = of_family(name), encoder(name)
    [row] = encode([chat])
    whole = tokenizer.apply_chat_template(chat.messages, tokenize=False)
    rendered = encode.rendered(chat)
    assert whole.startswith(rendered.text)
    assert row.input_ids.tolist() == tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
    asked = chat.messages[:-1]
    [prompt] = encode.prompts([chat])
    theirs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert prompt == theirs


@every_family
@few
@given(prompt=words, completion=words)
def test_training_sees_what_generation_sees(name: str, prompt: str, completion: str) -> None:
    tokenizer, encode = of_family(name), encoder(name)
    example = PromptCompletion(prompt, completion)
    [row], [start] = encode([example]), encode.prompts([example])
    ids = row.input_ids.tolist()
    assert ids[: len(start)] == start
    assert row.labels.tolist() == [*[IGNORE] * len(start), *ids[len(start) :]]
    assert start == without_end(tokenizer, tokenizer(prompt)["input_ids"])
    whole = without_end(tokenizer, tokenizer(prompt + completion)["input_ids"])
    if whole[: len(start)] == start:
        assert ids == ended(tokenizer, whole)
    elif name not in LOSSY and "strip" not in name and "NFKC" not in name:
        assert tokenizer.decode(ids) == tokenizer.decode(ended(tokenizer, whole)), "split where the prompt ends"


def without_end(tokenizer, ids):
    last = TextEncoder(tokenizer).last
    return ids[: len(ids) - len(last)]


def ended(tokenizer, ids):
    eos = tokenizer.eos_token_id
    return ids if ids[-1] == eos else [*ids, eos]


@every_family
@few
@given(prompt=words, completion=words)
def test_an_answer_is_read_as_it_was_written(name: str, prompt: str, completion: str) -> None:
    text = TextEncoder(of_family(name))
    [(start, ids)] = text.continued([(prompt, completion)])
    if read(text, [*start, *ids]) in (prompt + completion, f" {prompt}{completion}"):  # else it cannot be read
        assert text.answers([start], [ids]) == [completion]


@every_family
@few
@given(chat=chats())
def test_a_chats_answer_is_read_as_it_was_written(name: str, chat: Chat) -> None:
    encode, answer = encoder(name), chat.messages[-1]["content"]
    [row], [start] = encode([chat]), encode.prompts([chat])
    ids = row.input_ids.tolist()
    if name not in LOSSY and "<|" not in answer and ids[: len(start)] == start and answer in read(encode.text, ids):
        [text] = answer_texts(encode.tokenizer, [start], [ids[len(start) :]], answer_ends(encode.tokenizer))
        if name == "slow":  # its eos swallows the space before it
            text, answer = text.rstrip(), answer.rstrip()
        assert text.lstrip() == answer.lstrip(), "some swallow space behind a marker"
        assert text == answer or answer[:1].isspace()


LOSSLESS = [name for name in FAMILIES if name not in LOSSY]
PAIRS = [
    ("Review: a film\nSentiment:", " very positive"),
    ("Review: a film\nSentiment: ", "very positive"),
    ("The cat", " eats"),
    ("Name:\n", "The cat"),
    ("Name:\n", " The cat"),
    ("是中国人民", "的朋友 "),
    ("🙂🙂", " 🙂"),
    ("", "The cat"),
    ("", " The cat"),
    ("label: g", "ood"),
]


@pytest.mark.parametrize("name", LOSSLESS)
def test_the_first_space_is_read(name: str) -> None:
    """In a batch, and behind prompts that end within a word, or whose last tokens begin within a character."""
    text = TextEncoder(of_family(name))
    starts, answers = zip(*text.continued(PAIRS), strict=True)
    assert text.answers(starts, answers) == [as_tokens_can_tell(text, *pair) for pair in PAIRS]


def as_tokens_can_tell(text: TextEncoder, before: str, answer: str) -> str:
    """Returns an answer without the space that a text's own first space cannot be told from."""
    bare = answer.removeprefix(" ")
    with_space, without = text.encode([before + answer, before + bare])
    return bare if with_space == without else answer


@pytest.mark.parametrize("name", LOSSLESS)
def test_an_answer_behind_a_marker(name: str) -> None:
    """Where a tokenizer puts a space of its own before the text behind each special token, it is none of the answer."""
    text = TextEncoder(of_family(name))
    for marker, answer in product((EOS, "<|assistant|>", "<|assistant|>\n"), ("The cat", " eats", "中国", "\tx")):
        start, whole = text.encode([f"Hi{marker}", f"Hi{marker}{answer}"])
        swallows = marker == EOS if name == "slow" else marker != EOS and name in SWALLOWING
        expected = answer.lstrip() if swallows else as_tokens_can_tell(text, f"Hi{marker}", answer)
        assert text.answers([start], [whole[len(start) :]]) == [expected]


@every_family
@few
@given(text=with_specials)
def test_bos_and_eos_come_once(name: str, text: str) -> None:
    """Whether the tokenizer adds them, the text has them, or both; those within the text stay."""
    tokenizer, encode = of_family(name), encoder(name)
    first, bare = encode.text.first, tokenizer(text, add_special_tokens=False)["input_ids"]
    if name == "slow" and bare[-2:] == [tokenizer.eos_token_id] * 2:
        return  # ByT5 itself adds none behind one
    [row] = encode([PlainText(text)])
    if row is None:
        assert len(bare) < 2, "nothing is predicted"
        return
    assert row.input_ids.tolist() == ended(tokenizer, bare if bare[: len(first)] == first else [*first, *bare])


@every_family
def test_texts_that_have_their_specials_already(name: str) -> None:
    tokenizer, encode = of_family(name), encoder(name)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    adds_bos = encode.text.first == [bos]
    plain, with_bos, with_eos, with_both = (
        row.input_ids.tolist()
        for row in encode(
            [PlainText(text) for text in ("The cat", f"{BOS}The cat", f"The cat{EOS}", f"{BOS}The cat{EOS}")]
        )
    )
    for row in (plain, with_bos, with_eos, with_both):
        assert row.count(eos) == 1 and row[-1] == eos
        assert row.count(bos) == (adds_bos or row in (with_bos, with_both))
    [row] = encode([PromptCompletion(f"{BOS}The", " cat")])
    assert row.input_ids.tolist().count(bos) == 1 and tokenizer.decode(row.input_ids) == tokenizer.decode(with_bos)
    assert encode.prompt_ids([f"{BOS}The cat"])[0].count(bos) == 1
    chat = Chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    [row], [start] = encode([chat]), encode.prompts([chat])
    times = tokenizer.chat_template.count("bos_token")
    assert row.input_ids.tolist().count(bos) == start.count(bos) == times
    assert row.input_ids.tolist().count(eos) == 2


def characters(spans: Sequence[tuple[int, int]]) -> set[int]:
    return {place for start, end in spans for place in range(start, end)}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "slow"])
@few
@given(chat=chats())
def test_every_token_of_what_is_learned_is_labelled_and_no_other(name: str, chat: Chat) -> None:
    """One that spans the border has a character of it; a marker that swallows space beside it has none of that."""
    tokenizer, encode = of_family(name), encoder(name)
    [row], rendered = encode([chat]), encode.rendered(chat)
    learned = characters(rendered.spans)
    encoded = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    covered, seen = set(), set()
    for token, label, span in zip(encoded["input_ids"], row.labels.tolist(), encoded["offset_mapping"], strict=True):
        own = characters([span])
        if token in tokenizer.added_tokens_decoder:
            own = {place for place in own if not rendered.text[place].isspace()}
        if own:
            assert (label == token) == bool(own & learned)
        seen |= own
        covered |= own if label == token else set()
    assert learned & seen <= covered
    answers = [m["content"] for m in chat.messages if m["role"] == "assistant"]
    assert "".join(rendered.text[start:end] for start, end in rendered.spans).count(EOS) == len(answers)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "slow"])
@few
@given(chat=chats())
def test_a_tokenizer_without_offsets_labels_the_same(name: str, chat: Chat) -> None:
    encode = encoder(name)
    rendered = encode.rendered(chat)
    [fast] = encode.text.masked([(rendered.text, rendered.spans)])
    assert encode.text._masked_by_prefixes(rendered.text, rendered.spans) == fast


def test_bytes_are_labelled() -> None:
    """ByT5's tokenizer is in Python and tells no offsets."""
    [(ids, mask)] = TextEncoder(of_family("slow")).masked([("aé</s>中b", [(1, 6), (7, 8)])])
    assert of_family("slow").decode([token for token, is_learned in zip(ids, mask, strict=True) if is_learned])
    assert mask == [False, True, True, True, False, False, False, True]


@pytest.mark.parametrize("name", SWALLOWING)
def test_a_header_is_not_learned_for_the_space_that_it_swallows(name: str) -> None:
    encode = encoder(name)
    [row] = encode([Chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": " The cat"}])])
    learned = [token for token in row.labels.tolist() if token != IGNORE]
    assert encode.tokenizer.decode(learned).strip().startswith("The cat")


def test_a_space_that_trimmed_offsets_leave_out() -> None:
    """They tell it as the place behind it."""
    text = TextEncoder(of_family("byte-level, trimmed offsets"))
    for spans, learned in (([(2, 4)], " \n"), ([(3, 5)], "\na"), ([(0, 3)], " a: ")):
        [(ids, mask)] = text.masked([("a: \na", spans)])
        assert text.tokenizer.decode([i for i, is_in in zip(ids, mask, strict=True) if is_in]) == learned


def test_a_template_is_named_again(tmp_path: Path) -> None:
    """By every part of a run that has the tokenizer, and when what was saved with it goes on."""
    tokenizer = deepcopy(of_family("byte-level"))
    tokenizer.chat_template = {"chat": TEMPLATE, "tool_use": "none"}
    for _ in range(2):
        encode = Encoder(tokenizer, "causal_lm", tiny.data_config(chat_template="chat"))
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_chat_template() == TEMPLATE
    again = Encoder(loaded, "causal_lm", tiny.data_config(chat_template="chat"))
    chat = Chat([{"role": "user", "content": "a"}])
    assert again.chat.prompt(chat) == encode.chat.prompt(chat)


@every_family
def test_an_answer_behind_an_unknown_word_keeps_its_space(name: str) -> None:
    text = TextEncoder(of_family(name))
    [(start, ids)] = text.continued([("label: 漢", " good")])
    if start[-1] == text.tokenizer.unk_token_id:
        assert text.answers([start], [ids]) == [" good"]


@every_family
@pytest.mark.parametrize("is_chat", [False, True])
def test_a_prompt_that_is_cut_begins_as_texts_do(name: str, is_chat: bool) -> None:
    encode = encoder(name, max_length=6)
    prompt = Chat([{"role": "user", "content": "it is good " * 4}]) if is_chat else "it is good " * 4
    [whole], [ids] = encoder(name).prompt_ids([prompt]), encode.prompt_ids([prompt])
    bos, first = encode.tokenizer.bos_token_id, encode.text.first
    begins = first if whole[: len(first)] == first else []
    begins = begins or ([bos] if whole[0] == bos else [])
    assert ids == begins + whole[len(whole) - 6 + len(begins) :]
    assert len(ids) == 6
