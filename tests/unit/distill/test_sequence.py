"""What a teacher writes is learned from its prompts, which may be conversations."""

from __future__ import annotations

import json
from pathlib import Path

from scaleup.config.schema import DataConfig, SourceConfig
from scaleup.distill.sequence import written_row, written_source
from scaleup.records.chats import Chat
from scaleup.records.examples import PromptCompletion, example_maker

USER, SAID = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
TOOLS = [{"name": "f"}]


def read_back(prompt):
    """What a run makes of a written row, whatever the rows were that its prompts came from."""
    row = json.loads(json.dumps(written_row(prompt, "yes")))
    data = DataConfig.model_validate({"train": "x.jsonl", "messages": "m", "columns": {"prompt": "m"}})
    return example_maker(data, written_source(Path("y.jsonl"), SourceConfig(path="x.jsonl")))(row, 0)


def test_a_text_is_written_as_text():
    assert read_back("hi") == PromptCompletion("hi", "yes")


def test_of_a_conversation_the_teachers_answer_alone_is_learned():
    answer = {"role": "assistant", "content": "yes"}
    assert read_back(Chat([USER, SAID, USER], TOOLS)) == Chat([USER, SAID, USER, answer], TOOLS, frozenset({1}))
    assert read_back(Chat([USER])) == Chat([USER, answer])
