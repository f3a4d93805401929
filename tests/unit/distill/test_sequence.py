"""What a teacher writes is learned from its prompts, which may be conversations."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.data import DataConfig, SourceConfig
from scaleup.config.stages.distill import DistillConfig
from scaleup.distill import sequence
from scaleup.distill.sequence import with_written_rows, written_row, written_source
from scaleup.records.chats import Chat
from scaleup.records.examples import PromptCompletion, example_maker
from scaleup.train.job import Job
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
    assert read_back(Chat([USER, SAID, USER], TOOLS)) == Chat([USER, SAID, USER, answer], TOOLS, given=frozenset({1}))
    silent = Chat([USER, SAID, USER], unlearned=frozenset({0, 1}))
    assert read_back(silent) == Chat([USER, SAID, USER, answer], None, frozenset({0, 1}), frozenset({1}))
    assert read_back(Chat([USER])) == Chat([USER, answer])


def test_a_teacher_reads_through_its_own_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What `data.chat_template` names is the student's."""
    asked = []
    answer = SimpleNamespace(answers=lambda ids, _: asked.extend(ids) or ["yes"] * len(ids), most_tokens=None)
    monkeypatch.setattr(sequence, "Generator", lambda *_: answer)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [USER, SAID]}) + "\n")
    (tmp_path / "students.jinja").write_text("{{ messages[0]['content'] }}")
    data = {"train": "rows.jsonl", "root": str(tmp_path), "messages": "messages"}
    path = {"path": "builtin:tiny-llama"}
    raw = {"stage": "distill", "name": "x", "model": path, "teacher": path, "train": {"max_steps": 1}}
    data["chat_template"] = str(tmp_path / "students.jinja")
    config = DistillConfig.model_validate({**raw, "data": data, "distill": {"mode": "sequence"}})
    plan = tiny.plan(tmp_path, models={"teacher": tiny.facts("llama")})
    with_written_rows(Job(config, plan, tiny.single_process(tmp_path), RunFolder(tmp_path)))
    tokenizer = tiny.tokenizer("llama")
    assert asked == tokenizer.apply_chat_template([[USER]], add_generation_prompt=True)["input_ids"]
