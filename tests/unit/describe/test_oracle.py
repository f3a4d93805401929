"""What is read and learned of rows is what plain Transformers says; what is not, is seen."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from scaleup.data.tokenization import Encoder
from scaleup.describe.oracle import IGNORE, Row, Unknown, num_differing, oracle
from scaleup.describe.plain import plain_row
from scaleup.records.chats import Chat
from scaleup.records.examples import Example, PlainText, PromptCompletion
from tests.unit.data import tiny
from tests.unit.data.families import FAMILIES, of_family

CHAT = Chat(
    [
        {"role": "user", "content": "Name animal number 1."},
        {"role": "assistant", "content": "The cat"},
        {"role": "user", "content": "And its food?"},
        {"role": "assistant", "content": "Fish, mostly"},
    ]
)
PAIR = PromptCompletion("Review: a film\nSentiment:", " very good")
EXAMPLES: Sequence[Example] = (CHAT, PAIR, PlainText("The cat"))


def both(tokenizer: Any, example: Example, task: str = "causal_lm", **data: Any) -> tuple[Row | None, Row | None]:
    """Ours and the oracle's."""
    config = tiny.data_config().model_copy(update=data)
    [ours] = Encoder(tokenizer, task, config)([example])
    return None if ours is None else plain_row(ours, task), oracle(tokenizer, example, config, task)


def test_every_family_of_tokenizers() -> None:
    num_told = 0
    for name in FAMILIES:
        for example in EXAMPLES:
            try:
                ours, theirs = both(of_family(name), example)
            except Unknown:
                continue
            assert ours is not None and num_differing(ours, theirs) == 0, (name, example, ours, theirs)
            num_told += 1
    assert num_told > 2 * len(FAMILIES), "most rows are told"


@pytest.mark.parametrize(
    "data",
    [
        {"completion_only_loss": False},
        {"train_on": "last"},
        {"train_on": "all"},
        {"max_length": 8},
        {"max_length": 8, "too_long": "drop"},
    ],
)
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_what_the_config_says_is_learned(model: str, data: dict[str, Any]) -> None:
    tokenizer = of_family(next(iter(FAMILIES))) if model == "llama" else tiny.tokenizer(model)
    for example in EXAMPLES[model == "gpt2" :]:
        ours, theirs = both(tokenizer, example, **data)
        assert num_differing(ours, theirs) == 0, (ours, theirs)


@pytest.mark.parametrize("model", ["t5", "bart"])
@pytest.mark.parametrize("data", [{}, {"max_length": 8}, {"max_length": 8, "too_long": "drop"}])
def test_encoder_decoders(model: str, data: dict[str, Any]) -> None:
    ours, theirs = both(tiny.tokenizer(model), PAIR, "seq2seq_lm", **data)
    assert num_differing(ours, theirs) == 0, (ours, theirs)


def test_what_is_wrong_is_counted() -> None:
    tokenizer = of_family(next(iter(FAMILIES)))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ours, true = both(tokenizer, PAIR)
    assert ours == true and true is not None and true[0][0] == bos and true[1][-1] == eos
    ids, labels = true
    num_unlearned = sum(label == IGNORE for label in labels)
    assert num_differing(([bos, *ids], [IGNORE, *labels]), true) > 1, "begun twice"
    assert num_differing((ids, [IGNORE, *ids[1:]]), true) == num_unlearned - 1, "the prompt is learned"
    assert num_differing((ids, [*labels[:-1], IGNORE]), true) == 1, "its end is not learned"
    assert num_differing(([*ids[:-1], bos], [*labels[:-1], bos]), true) == 2, "another end"
    assert num_differing(None, true) == 2 * len(ids), "left out"


MARKED = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@pytest.mark.parametrize("train_on", ["assistant", "last"])
def test_what_a_template_marks_is_learned(train_on: str) -> None:
    tokenizer = deepcopy(of_family("byte-level"))
    tokenizer.chat_template = MARKED
    ours, theirs = both(tokenizer, CHAT, train_on=train_on)
    assert num_differing(ours, theirs) == 0 and theirs is not None
    told = tokenizer.decode([label for label in theirs[1] if label != IGNORE])
    assert told == ("The cat</s>" if train_on == "assistant" else "") + "Fish, mostly</s>"


def test_of_an_answer_that_is_read_alone_it_says_nothing() -> None:
    with pytest.raises(Unknown):
        both(of_family("byte-level"), replace(CHAT, unlearned=frozenset({1})))
