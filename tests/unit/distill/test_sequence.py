"""What a teacher writes is learned from its prompts, which may be conversations."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from scaleup.config.schema import DataConfig, SourceConfig
from scaleup.distill.sequence import teacher_encoder, written_row, written_source
from scaleup.records.chats import Chat
from scaleup.records.examples import PromptCompletion, example_maker
from tests.unit.data import tiny

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


def test_a_teacher_reads_through_its_own_template(tmp_path: Path):
    named = tmp_path / "students.jinja"
    named.write_text("{{ messages[0]['content'] }}")
    data = tiny.data_config(chat_template=str(named))
    chat = Chat([{"role": "user", "content": "hi"}])
    tokenizer = tiny.tokenizer("llama")
    own = teacher_encoder(tokenizer, "causal_lm", tiny.data_config()).as_text(chat)
    assert teacher_encoder(tokenizer, "causal_lm", data).as_text(chat) == own != "hi"
    without = copy.deepcopy(tokenizer)
    without.chat_template = None
    assert teacher_encoder(without, "causal_lm", data).as_text(chat) == "hi"
