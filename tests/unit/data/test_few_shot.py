"""Examples stand before prompts: which ones follows from the seed and the row, and a row is never its own example."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scaleup.config.data import DataConfig
from scaleup.data.few_shot import asked_prompts, asked_rows
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat
from scaleup.records.examples import Opening, PromptCompletion
from scaleup.records.instructions import INSTRUCTIONS, phrasing_of

TRAIN = [{"text": f"film {number}", "label": "good" if number % 4 else "bad"} for number in range(12)]
TEST = [{"text": text, "label": "good"} for text in ("film 3", "a new one", "another")]
FORMAT = {"prompt": "Review: {text}\nSentiment:", "completion": " {label}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.jsonl", TRAIN)
    write(tmp_path / "test.jsonl", TEST)
    return tmp_path


def write(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def asked(folder: Path, completions: bool = True, form: dict[str, Any] = FORMAT, **few_shot: Any) -> list[Any]:
    data = {"root": str(folder), "train": "train.jsonl", "test": "test.jsonl", **form, "few_shot": few_shot}
    return asked_rows(DataConfig.model_validate(data), "test", completions)


def test_chosen_examples_stand_before_each_prompt(folder: Path) -> None:
    first, *_ = asked(folder, indices=[0, 5])
    before = "Review: film 0\nSentiment: bad\n\nReview: film 5\nSentiment: good\n\n"
    assert first == PromptCompletion(f"{before}Review: film 3\nSentiment:", " good")
    assert asked(folder, completions=False, indices=[0, 5])[0] == Opening(first.prompt)
    assert asked(folder, indices=[0], separator="\n###\n")[1].prompt.startswith("Review: film 0\nSentiment: bad\n###\n")


def test_none_are_none(folder: Path) -> None:
    assert asked(folder, num_examples=0)[0] == PromptCompletion("Review: film 3\nSentiment:", " good")
    assert asked(folder)[0].prompt.count("Review:") == 2, "one by default"


def test_draws_follow_the_seed_and_the_row(folder: Path) -> None:
    rows = asked(folder, num_examples=4, seed=1)
    assert rows == asked(folder, num_examples=4, seed=1) != asked(folder, num_examples=4, seed=2)
    examples = [row.prompt.split("\n\n")[:-1] for row in rows]
    assert all(len(set(each)) == 4 for each in examples)
    assert len({tuple(each) for each in examples}) == 3, "each row has its own"


def test_a_row_is_never_its_own_example(folder: Path) -> None:
    first, *_ = asked(folder, num_examples=11)
    assert first.prompt.count("film 3\n") == 1
    assert sorted(first.prompt.split("\n\n")[:-1]) == sorted(
        f"Review: {row['text']}\nSentiment: {row['label']}" for row in TRAIN if row["text"] != "film 3"
    )
    with pytest.raises(ScaleupError, match=r"data.few_shot.num_examples: data.train has not 12 rows"):
        asked(folder, num_examples=12)
    with pytest.raises(ScaleupError, match=r"data.few_shot.indices: row 3 of data.train is asked itself"):
        asked(folder, indices=[1, 3])


@pytest.mark.parametrize(("count", "expected"), [(2, [1, 1]), (4, [2, 2]), (3, [1, 2])])
def test_balanced_draws_have_as_many_of_each_label(folder: Path, count: int, expected: list[int]) -> None:
    for row in asked(folder, num_examples=count, balanced=True):
        labels = Counter(each.rpartition(" ")[2] for each in row.prompt.split("\n\n")[:-1])
        assert sorted(labels.values()) == expected


def test_examples_of_a_conversation_are_earlier_turns(folder: Path) -> None:
    def turns(text: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    system = [{"role": "system", "content": "Say good or bad."}]
    write(folder / "train.jsonl", [{"messages": [*system, *turns(row["text"], row["label"])]} for row in TRAIN])
    write(folder / "test.jsonl", [{"messages": [*system, *turns("a new one", "good")]}])
    form = {"messages": "messages"}
    [chat] = asked(folder, form=form, indices=[0, 1])
    assert isinstance(chat, Chat)
    assert chat.messages == [*system, *turns("film 0", "bad"), *turns("film 1", "good"), *turns("a new one", "good")]
    assert chat.answers == [6], "nothing of an example is learned"
    [opened] = asked(folder, completions=False, form=form, indices=[0, 1])
    assert opened.prompt.messages == chat.messages[:-1]


def test_examples_have_the_phrasing_of_their_prompt(folder: Path) -> None:
    phrasings = INSTRUCTIONS["sentiment"].phrasings
    for index, row in enumerate(asked(folder, form={"template": "sentiment"}, num_examples=2)):
        worded = "".join(phrasings[phrasing_of(index, len(phrasings))])
        assert any(row.prompt.startswith(f"{worded.format(**example)}\n\n") for example in TRAIN)


def test_what_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ScaleupError, match=r"data.few_shot.indices: there is no row 12: data.train has 12"):
        asked(folder, indices=[12])
    with pytest.raises(ScaleupError, match=r"data.few_shot.num_examples: 13 are more than the 12 rows"):
        asked(folder, num_examples=13)
    write(folder / "test.jsonl", [{"messages": [{"role": "user", "content": "a"}]}])
    data = {"root": str(folder), "train": [{"path": "train.jsonl", **FORMAT}], "messages": "messages"}
    mixed = DataConfig.model_validate({**data, "test": "test.jsonl", "few_shot": {}})
    with pytest.raises(ScaleupError, match="the examples are texts, and the prompt is a conversation"):
        asked_rows(mixed, "test", False)


def test_prompts_of_a_config_get_examples_too(folder: Path) -> None:
    data = {"root": str(folder), "train": "train.jsonl", **FORMAT, "few_shot": {"indices": [2]}}
    [prompt] = asked_prompts(DataConfig.model_validate(data), ["Review: mine\nSentiment:"])
    assert prompt == "Review: film 2\nSentiment: good\n\nReview: mine\nSentiment:"
