"""The loss of a row is Transformers' own on the same text, whatever the tokenizer does with spaces, bytes and ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scaleup.data.dataset import collator_for
from scaleup.data.tokenization import Encoder
from scaleup.records.chats import Chat
from scaleup.records.examples import Example, PlainText, PromptCompletion
from scaleup.train.losses import token_loss_sum
from tests.unit.data import tiny
from tests.unit.data.families import EOS, FAMILIES, TIGHT, of_family

OTHERS = ("strip", "phi", "slow", "across", "trimmed", "word piece")
"""Their tokens span the end of the prompt, or other characters than they tell: tests/unit/data/test_text.py."""
NAMES = [name for name in FAMILIES if not any(other in name for other in OTHERS)]
CHAT = [
    {"role": "assistant", "content": "Welcome!"},
    {"role": "user", "content": "Name animal number 1."},
    {"role": "assistant", "content": "The cat"},
    {"role": "user", "content": "是中国"},
    {"role": "assistant", "content": " Fish, mostly"},
]
PAIR = PromptCompletion("Review: a film\nSentiment:", " very 好")


def by_offsets(tokenizer: Any, text: str, learned: list[str], special: bool) -> tuple[list[int], list[int]]:
    """Their tokens of a text, and labels of those with a character of what is learned."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    spans, place = [], 0
    for part in learned:
        start = text.index(part, place)
        place = start + len(part)
        spans.append((start, place))
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    is_in = [any(max(a, start) < min(max(b, a + 1), end) for start, end in spans) for a, b in offsets]
    return ids, [token if each else -100 for token, each in zip(ids, is_in, strict=True)]


def their_rows(tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    end = EOS if tokenizer.chat_template == TIGHT else f"{EOS}\n"
    whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
    answers = [f"{message['content']}{end}" for message in CHAT if message["role"] == "assistant"]
    rows = [by_offsets(tokenizer, whole, answers, special=False)]
    for text, learned in ((PAIR.prompt + PAIR.completion, PAIR.completion), ("The cat", "The cat")):
        ids, labels = by_offsets(tokenizer, text, [learned], special=True)
        if ids[-1] != tokenizer.eos_token_id:
            ids, labels = [*ids, tokenizer.eos_token_id], [*labels, -100]
        labels[-1] = tokenizer.eos_token_id
        rows.append((ids, labels if text != learned else ids))
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_text(name: str) -> None:
    tokenizer = of_family(name)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # losses that differ by token
    encode = Encoder(tokenizer, "causal_lm", tiny.data_config())
    collate = collator_for("causal_lm", 0, None)
    examples: list[Example] = [Chat(CHAT), PAIR, PlainText("The cat")]
    for example, (ids, labels) in zip(examples, their_rows(tokenizer), strict=True):
        batch = collate(encode([example]))
        with torch.no_grad():
            ours = float(token_loss_sum(model, batch)) / batch.num_labels
            theirs = float(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss)
        assert ours == pytest.approx(theirs, abs=1e-5)
