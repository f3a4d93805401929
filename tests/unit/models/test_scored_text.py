"""A score is that of plain Transformers on the same text: one bos, one eos, and a conversation in the reward model's
own words, whatever the policy's markup is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from scaleup.data.prompts import prompts_of
from scaleup.data.tokenization import Encoder
from scaleup.models.classifier import pool_by_mask
from scaleup.models.rollout import Responses
from scaleup.models.scoring import Reader, Scorer
from scaleup.records.chats import Chat
from scaleup.rl.experience import samples_of
from scaleup.rl.rewards.build import scored_of
from scaleup.rl.rewards.interface import Sample
from scaleup.rl.rewards.placements import packed, unpacked
from tests.unit.data import tiny
from tests.unit.data.families import BOS, EOS, of_family

CPU = torch.device("cpu")
NAMES = ("byte-level", "byte-level, bos and eos", "metaspace first", "metaspace always", "legacy", "phi", "unigram")
QUESTION = [{"role": "user", "content": "Name a film"}]
CHAT = Chat(QUESTION)
ANSWERS = ("The cat", " very good", "quite negative\n")


def scorer(name: str) -> Scorer:
    tokenizer = of_family(name)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, **sizes)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    torch.nn.init.normal_(model.score.weight, std=0.5)
    pool_by_mask(model)
    return Scorer(model, Reader(tokenizer, "last"), CPU, 2)


def plain(found: Scorer, ids: list[int]) -> float:
    """The score of a row of ids, which ends with one eos."""
    eos = found.reader.tokenizer.eos_token_id
    with torch.no_grad():
        return float(found.model(torch.tensor([ids if ids[-1] == eos else [*ids, eos]])).logits[0, 0])


@pytest.mark.parametrize("name", NAMES)
def test_texts_and_conversations(name: str) -> None:
    found = scorer(name)
    tokenizer = found.reader.tokenizer
    texts = [("Name a film: ", answer) for answer in ANSWERS]
    expected = [plain(found, tokenizer(prompt + answer)["input_ids"]) for prompt, answer in texts]
    assert found.score(texts) == pytest.approx(expected, abs=1e-5)
    for tools in (None, [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}]):
        chats = [(replace(CHAT, tools=tools), [{"role": "assistant", "content": answer}]) for answer in ANSWERS]
        expected = [
            plain(found, without_breaks(tokenizer, tokenizer.apply_chat_template([*QUESTION, *more], tokenize=False)))
            for _, more in chats
        ]
        assert found.score(chats) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-2, "the answers have different scores"


def without_breaks(tokenizer: Any, text: str) -> list[int]:
    """The line break behind the end of a turn is not read."""
    return tokenizer(text.rstrip("\n"), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_what_has_a_bos_and_an_eos_gets_no_other(name: str) -> None:
    reader = Reader(of_family(name), "last")
    bos, eos = reader.tokenizer.bos_token_id, reader.tokenizer.eos_token_id
    for row in reader.ids([(f"{BOS}Hi", "the cat"), (f"{BOS}Hi", f"the cat{EOS}")]):
        assert (row.count(bos), row.count(eos), row[0], row[-1]) == (1, 1, bos, eos)
    [chat] = reader.ids([(CHAT, [{"role": "assistant", "content": "The cat"}])])
    assert chat.count(bos) == 1 and chat[-1] == eos and chat[-2] != eos


def sample_of(policy: str, prompt: str | Chat, answer: str) -> Sample:
    """What PPO makes of an answer that the policy wrote, with its eos, to a prompt."""
    tokenizer = of_family(policy)
    encode = Encoder(tokenizer, "causal_lm", tiny.data_config())
    [asked] = prompts_of(encode, [prompt])
    before = asked.text if isinstance(prompt, Chat) else prompt
    start, whole = encode.text.encode([before, before + answer], special=not isinstance(prompt, Chat))
    written = [*whole[len(start) :], tokenizer.eos_token_id]
    assert whole[: len(start)] == start == asked.ids
    given = Responses(torch.tensor([written]), torch.tensor([len(written)]), torch.tensor([True]))
    [sample] = samples_of(tokenizer, [asked], given, [tokenizer.eos_token_id])
    return sample


@pytest.mark.parametrize("name", NAMES)
def test_ppo_shows_what_was_written(name: str) -> None:
    """With its first space, behind the prompt as it was."""
    sample = sample_of(name, "Review: a film\nSentiment:", " very positive")
    assert (sample.prompt, sample.response) == ("Review: a film\nSentiment:", " very positive")
    found = scorer("metaspace first")
    expected = plain(found, found.reader.tokenizer(sample.prompt + " very positive")["input_ids"])
    assert found.score([scored_of(found.reader, sample)]) == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize("policy", ["byte-level", "metaspace first", "phi"])
@pytest.mark.parametrize("goes_over_the_bridge", [False, True])
def test_a_reward_model_reads_a_conversation_by_its_own_template(policy: str, goes_over_the_bridge: bool) -> None:
    """Which writes all special tokens that there are: here no bos."""
    sample = sample_of(policy, CHAT, "The cat")
    if goes_over_the_bridge:
        sample = unpacked(*packed(sample))
    found = scorer("byte-level")
    tokenizer = found.reader.tokenizer
    markup = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
    before, tokenizer.chat_template = tokenizer.chat_template, markup
    try:
        [ids] = found.reader.ids([scored_of(found.reader, sample)])
        text = f"[user] Name a film{EOS}[assistant] The cat{EOS}"
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = plain(found, ids)
        assert found.score([scored_of(found.reader, sample)]) == pytest.approx([expected], abs=1e-6)
    finally:
        tokenizer.chat_template = before


def test_one_without_a_template_reads_the_policys_markup_once_begun() -> None:
    sample = sample_of("metaspace first", CHAT, "The cat")
    reader = Reader(of_family("metaspace first"), "last")
    template, reader.tokenizer.chat_template = reader.tokenizer.chat_template, None
    try:
        [ids] = reader.ids([scored_of(reader, sample)])
    finally:
        reader.tokenizer.chat_template = template
    assert ids.count(reader.tokenizer.bos_token_id) == 1
    assert ids == [*reader.tokenizer(f"{sample.prompt}The cat", add_special_tokens=False)["input_ids"], ids[-1]]
