"""What a config says of conversations: templates that are not there, and keys without a meaning for the rows."""

import pytest

from scaleup.config.data import DataConfig
from scaleup.records import chat_templates
from scaleup.records.chat_rules import chat_problems

CHATS = {"messages": "messages"}
PAIRS = {"prompt": "Q: {q}", "completion": "{a}!"}


def problems(prompts_only=(), splits=("train",), **keys):
    data = DataConfig.model_validate({"train": "rows.jsonl", **keys})
    return [f"{problem.where}: {problem.what}" for problem in chat_problems(data, splits, prompts_only)]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("trl:qwen3_train", "TRL has no template 'qwen3_train'"),
        ("nowhere/chat.jinja", "nowhere/chat.jinja cannot be read: No such file or directory"),
        ("trl:qwen3_training", None),
        ("tool_use", None),
    ],
)
def test_templates_are_looked_for(named, words):
    """Only the tokenizer can tell whether it has one of that name."""
    assert problems(**CHATS, chat_template=named) == ([f"data.chat_template: {words}"] if words else [])


def test_without_trl_its_templates_are_not_looked_for(monkeypatch):
    monkeypatch.setattr(chat_templates, "find_spec", lambda name: None)
    assert problems(**CHATS, chat_template="trl:nothing") == []


@pytest.mark.parametrize("keys", [{"train_on": "last"}, {"train_on": "all"}, {"split_turns": True}])
@pytest.mark.parametrize(
    ("form", "prompts_only", "is_refused"),
    [
        (CHATS, [], False),
        ({"template": "alpaca"}, [], False),
        ({"prompt": "{p}", "completion": "{c}"}, [], False),
        (PAIRS, [], True),
        ({"text": "{text}"}, [], True),
        ({"text": "{text}", "label": "label"}, [], True),
        ({"chosen": "{chosen}", "rejected": "{rejected}"}, [], True),
        (CHATS, ["train"], True),
        ({"train": [{"path": "a.jsonl", **PAIRS}, {"path": "b.jsonl", **CHATS}]}, [], False),
    ],
)
def test_keys_that_need_conversations_to_learn(keys, form, prompts_only, is_refused):
    [key] = keys
    found = problems(prompts_only, **form, **keys)
    assert [line.partition(":")[0] for line in found] == ([f"data.{key}"] if is_refused else [])
    assert problems(prompts_only, **form) == []


def test_rows_that_are_measured_alone_may_be_anything():
    """The config is that of the run which is measured."""
    assert problems(splits=["test"], **PAIRS, train_on="last") == []


def test_what_learns_the_last_answer_does_not_learn_everything():
    assert problems(**CHATS, train_on="last", completion_only_loss=False) == [
        "data.train_on: is last, and completion_only_loss: false learns everything"
    ]
    assert problems(**CHATS, train_on="all", completion_only_loss=False) == []


def test_one_conversation_is_not_split_over_what_takes_rows_one_by_one():
    split = {**CHATS, "split_turns": True}
    assert problems(**split, streaming=True) == [
        "data.split_turns: makes several rows of one, and a stream is drawn row by row"
    ]
    assert problems(**split, validation_fraction=0.1) == [
        "data.split_turns: would put answers of one conversation on both sides of data.validation_fraction"
    ]
    assert problems(**CHATS, streaming=True) == problems(**CHATS, validation_fraction=0.1) == []
