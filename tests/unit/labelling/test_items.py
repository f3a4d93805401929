"""Files of generations become items; what cannot be judged side by side is refused, all at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaleup.errors import ScaleupError
from scaleup.labelling.items import Answer, ItemSet, read_items


def write(file: Path, *rows: dict | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return file


def refusal(*files: Path) -> list[str]:
    with pytest.raises(ScaleupError) as caught:
        read_items(files, 0)
    return [f"{problem.where} {problem.what}" for problem in caught.value.problems]


def test_several_models_answer_the_same_prompts_in_any_order(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", {"prompt": "a", "completion": "1"}, {"prompt": "b", "completion": "2"})
    other = write(tmp_path / "other.jsonl", {"prompt": "b", "completion": "3"}, {"prompt": "a", "completion": "1"})
    found = read_items([one, other], 7)
    (item,) = found.items
    assert (item.id, item.prompt, found.num_equal) == (1, "b", 1)
    assert item.answers == (Answer("2", (str(one),)), Answer("3", (str(other),)))
    assert found.models == [str(one), str(other)]
    found.save(tmp_path / "items.json")
    assert ItemSet.read(tmp_path / "items.json") == found


def test_one_model_with_several_answers_of_which_two_are_equal(tmp_path: Path) -> None:
    file = write(tmp_path / "one.jsonl", {"prompt": "a", "completions": ["x", "y", "x"]})
    (item,) = read_items([file], 0).items
    assert item.answers == (Answer("x", ("1", "3")), Answer("y", ("2",)))


def test_adapters_of_a_run_and_its_newest_generation(tmp_path: Path) -> None:
    for number in (2, 10):
        row = {"id": 0, "prompt": "a", "lora": f"{number}", "base": "b"}
        write(tmp_path / f"run/generations/{number}/generations.jsonl", row)
    (item,) = read_items([tmp_path / "run"], 0).items
    assert item.answers == (Answer("10", ("lora",)), Answer("b", ("base",)))


def test_a_prompt_that_comes_twice_is_two_items(tmp_path: Path) -> None:
    one = write(tmp_path / "1.jsonl", *({"prompt": "a", "completion": text} for text in ("x", "y")))
    two = write(tmp_path / "2.jsonl", *({"prompt": "a", "completion": text} for text in ("p", "q")))
    assert [[answer.text for answer in item.answers] for item in read_items([one, two], 0).items] == [
        ["x", "p"],
        ["y", "q"],
    ]


def test_a_conversation_with_tools(tmp_path: Path) -> None:
    chat, tools = [{"role": "user", "content": "hello"}], [{"name": "f", "parameters": {}}]
    file = write(tmp_path / "1.jsonl", {"prompt": chat, "tools": tools, "completions": ["x", "y"]})
    (item,) = read_items([file], 0).items
    assert item.prompt == chat and item.tools == tools


def test_every_mistake_of_every_file_is_told(tmp_path: Path) -> None:
    bad = write(
        tmp_path / "bad.jsonl", {"prompt": 3, "completion": "a"}, '{"prompt": ', {"prompt": "a"}, {"prompt": ["a"]}
    )
    worse = write(tmp_path / "worse.jsonl", {"prompt": "a", "completions": ["x", None]})
    long = write(tmp_path / "long.jsonl", {"prompt": "a", "completions": list("0123456789")})
    found = refusal(bad, worse, long, tmp_path / "no.jsonl", tmp_path)
    assert [each.removeprefix(f"{tmp_path}") for each in found] == [
        " has no generations.jsonl",
        "/bad.jsonl:1: prompt is no text and no list of messages",
        "/bad.jsonl:2 is not valid JSON: Expecting value (column 1)",
        "/bad.jsonl:3: completion is not there, nor completions, nor a column of an adapter",
        "/bad.jsonl:4: prompt[0] is no message",
        "/worse.jsonl:1: completions holds an answer that is no text",
        "/long.jsonl:1 has more than 9 answers, which is how many have a key",
        "/no.jsonl does not exist",
    ]
    many = write(tmp_path / "many.jsonl", *[{"prompt": 1}] * 8)
    assert len(refusal(many)) == 6 and refusal(many)[-1] == f"{many} has 3 more mistakes"


def test_what_is_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "1.jsonl", {"prompt": "a", "completion": "x"}, {"prompt": "b", "completion": "y"})
    less = write(tmp_path / "2.jsonl", {"prompt": "b", "completion": "z"}, {"prompt": "c", "completion": "z"})
    assert refusal(one, less) == [
        f"{one}:1 has a prompt that not all files answer",
        f"{less}:2 has a prompt that not all files answer",
    ]
    assert refusal(one) == ["ANSWERS hold one answer a prompt: there is nothing to compare it with"]
    same = write(tmp_path / "3.jsonl", *map(json.loads, one.read_text().splitlines()))
    assert refusal(one, same) == ["ANSWERS are the same words for every prompt"]
    assert "ANSWERS names a file twice" in refusal(one, one)
    assert refusal(write(tmp_path / "4.jsonl")) == ["ANSWERS hold no row"]
