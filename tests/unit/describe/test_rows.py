"""What the plan says of rows before anything starts: each that the template refuses, with its place, and what is
learned otherwise than one would think."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from scaleup.config.data import DataConfig
from scaleup.config.schema import ModelConfig
from scaleup.data import rendering
from scaleup.data.text import TextEncoder
from scaleup.describe import rows as described
from scaleup.describe.rows import row_notes
from scaleup.errors import ScaleupError
from scaleup.plan.facts import RowsRequest
from tests.unit.data import tiny
from tests.unit.data.families import of_family

USER, SAID = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
ENDS = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
ASKS = "{% if add_generation_prompt %}assistant:{% endif %}"
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
LOOP = "{% for each in range(99999) %}INNER{% endfor %}"
ENDLESS = LOOP.replace("INNER", LOOP).replace("INNER", LOOP)
Look = Callable[..., list[str]]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """The notes on rows, as a tokenizer of some family reads them, which may have another template."""

    def notes(
        rows: Sequence[Any],
        family: str = "byte-level",
        template: Any = None,
        where: str = "model",
        holds: str = "completions",
        **data: Any,
    ) -> list[str]:
        tokenizer = of_family(family)
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        monkeypatch.setattr(described, "load_tokenizer", lambda *_: tokenizer)
        monkeypatch.setattr(tokenizer, "chat_template", template or tokenizer.chat_template)
        config = DataConfig.model_validate({"train": str(tmp_path / "rows.jsonl"), **data})
        request = RowsRequest(data=config, splits={"train": holds}, by_own_template=where != "model")
        return row_notes(ModelConfig(path="x"), tiny.facts("llama"), request, where)

    return notes


def chat(*messages: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


def refusals(look: Look, rows: Sequence[Any], **options: Any) -> list[str]:
    with pytest.raises(ScaleupError) as caught:
        look(rows, messages="messages", **options)
    return [f"{Path(problem.where).name}: {problem.what} -> {problem.remedy}" for problem in caught.value.problems]


def test_nothing_is_said_of_usual_rows(look: Look) -> None:
    assert look([chat(USER, SAID)], messages="messages") == []
    assert look([{"q": "Name:", "a": " cat"}], prompt="{q}", completion="{a}") == []


def test_tokens_over_the_end_of_the_prompt_are_counted(look: Look) -> None:
    rows = [{"q": "is it:", "a": "good"}, {"q": "a", "a": "\nb"}]
    [note] = look(rows, "byte-level, across words", prompt="{q}", completion="{a}")
    assert "data.train.0: in 1 of the first 2 rows a token spans the end of the prompt and is split there" in note
    assert "-> end the prompt without a space, and begin the completion with it" in note


def test_another_prompt_than_the_rows(look: Look) -> None:
    """The generation prompt's last token is another one once the answer is there."""
    joined = (
        "{% for m in messages %}{{ 'is it:' if m['role'] == 'assistant' }}{{ m['content'] + eos_token }}{% endfor %}"
    )
    rows = [chat(USER, {"role": "assistant", "content": "good"}), chat(USER, {"role": "assistant", "content": "fish"})]
    template = joined + "{% if add_generation_prompt %}is it:{% endif %}"
    [note] = look(rows, "byte-level, across words", template, messages="messages")
    assert "in 1 of the first 2 conversations generation starts from other tokens than the row has" in note
    assert "e.g. 'hi</s>is it:'" in note


@pytest.mark.parametrize(
    ("end", "how"), [("", "ends no turn"), ("<done>\\n", "ends a turn with '<done>', which is no token")]
)
def test_nothing_that_is_learned_ends_an_answer(look: Look, end: str, how: str) -> None:
    template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + 'END' }}{% endfor %}".replace("END", end)
    [note] = look([chat(USER, SAID)], template=template + ASKS, messages="messages")
    assert f"data.train.0: the chat template {how}: nothing that is learned stops generation -> " in note
    assert look([chat(USER, SAID)], template=template + ASKS, messages="messages", train_on="all") == []


def test_todays_date(look: Look) -> None:
    template = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    assert any(
        "shows today's date" in note for note in look([chat(USER, SAID)], template=template, messages="messages")
    )


def test_marks_without_the_end(look: Look) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ':' }}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{{ eos_token }}{% endfor %}"
    )
    [note] = look([chat(USER, SAID)], template=template + ASKS, messages="messages")
    assert "the chat template does not mark '</s>', which ends a turn, as the assistant's: nothing that is" in note


def test_rows_that_are_cut(look: Look) -> None:
    rows = [{"q": "Name:", "a": " cat" * length} for length in (1, 30)]
    [note] = look(rows, prompt="{q}", completion="{a}", max_length=16)
    assert "data.train.0: 1 of the first 2 rows is cut at data.max_length (16) and does not learn where it ends" in note
    [note] = look([*rows, rows[1]], prompt="{q}", completion="{a}", max_length=16)
    assert "2 of the first 3 rows are cut at data.max_length (16) and do not learn where they end" in note
    [note] = look(rows, prompt="{q}", completion="{a}", max_length=16, too_long="drop")
    assert "1 of the first 2 rows is longer than data.max_length (16) and left out -> raise it" in note
    rows = [{"q": "Name:" * length, "a": " cat"} for length in (1, 30)]
    [note] = look(rows, prompt="{q}", completion="{a}", max_length=16)
    assert "data.train.0: 1 of the first 2 rows has nothing to learn within data.max_length (16) and is left" in note
    with pytest.raises(ScaleupError, match=r"data\.max_length: leaves no row of data\.train\.0 with anything to learn"):
        look(rows[1:], prompt="{q}", completion="{a}", max_length=16)


def test_what_the_template_leaves_out_is_counted(look: Look) -> None:
    thinking = {**SAID, "reasoning_content": "it is a greeting"}
    rows = [chat(USER, SAID, tools=None), chat(USER, thinking, tools=None), chat(USER, SAID, tools=TOOLS)]
    notes = look(rows, template=ENDS + ASKS, messages="messages", tools="tools")
    assert notes == [
        f"data.train.0: of 1 of 3 conversations the chat template leaves out the {what}"
        for what in ("tools", "reasoning")
    ]
    shown = "{{ tools }}" + ENDS.replace("m['content']", "(m['reasoning_content'] or '') + m['content']") + ASKS
    assert look(rows, template=shown, messages="messages", tools="tools") == []


def test_answers_that_are_shown_otherwise_are_counted(look: Look) -> None:
    rewrites = (
        "{% for m in messages %}{{ m['role'] + ':' }}{{ m['content'] if loop.last or m['role'] == 'user' else '...' }}"
        "{{ eos_token }}{% endfor %}"
    )
    other = {"role": "assistant", "content": "yes"}
    notes = look([chat(USER, SAID, USER, SAID), chat(USER, other)], template=rewrites + ASKS, messages="messages")
    assert "of 1 of 2 conversations the chat template shows earlier answers otherwise" in notes[0]
    assert look([chat(USER, SAID, USER, SAID)], template=rewrites + ASKS, messages="messages", split_turns=True) == []
    split = [chat(USER, SAID, USER, SAID), chat(USER, SAID)]
    assert look(split, template=rewrites + ASKS, messages="messages") == [], "each answer is the last of a row"


def test_every_row_that_is_refused_is_named(look: Look) -> None:
    bad, good = chat({"role": "system", "content": "be kind"}, USER, SAID), chat(USER, SAID)
    found = refusals(look, [good, bad, good, *[bad] * 6], template=STRICT + ENDS + ASKS)
    words = "'data.messages' the chat template refuses messages of system, user, assistant: no system"
    assert [line.split(" -> ")[0] for line in found[:5]] == [f"rows.jsonl:{line}: {words}" for line in (2, 4, 5, 6, 7)]
    assert found[5:] == ["rows.jsonl: and 2 more rows fail -> "]


def test_a_template_that_never_ends_is_stopped_and_tried_no_more(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.05)
    [line] = refusals(look, [chat(USER, SAID)] * 1000, template=ENDLESS)
    assert line.startswith(
        "rows.jsonl:1: 'data.messages' the chat template took more than 0.05 seconds for messages of"
    )


def test_its_time_limit_leaves_other_timers(look: Look) -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 250)
    try:
        look([chat(USER, SAID)], messages="messages")
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 200
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_several_templates_and_no_default(look: Look) -> None:
    several = {"chat": ENDS + ASKS, "tool_use": "{{ tools }}" + ENDS + ASKS}
    [line] = refusals(look, [chat(USER, SAID)] * 9, template=several)
    assert line == (
        "data.chat_template: the tokenizer has the chat templates chat, tool_use, and none is called default"
        " -> name one of them, e.g. data.chat_template: chat"
    )
    assert look([chat(USER, SAID)], template=several, messages="messages", chat_template="chat") == []
    rows = [chat(USER, SAID, tools=TOOLS)]
    assert look(rows, template=several, messages="messages", tools="tools", chat_template="tool_use") == []
    assert look([chat(USER, SAID)], template={**several, "default": ENDS + ASKS}, messages="messages") == []


def test_chosen_and_rejected_messages_are_tried(look: Look) -> None:
    bad = {"role": "system", "content": "x"}
    rows = [{"p": [USER], "c": [SAID], "r": [SAID, USER, bad]}, {"p": [USER], "c": [SAID], "r": [SAID]}]
    with pytest.raises(ScaleupError, match="no system") as caught:
        look(rows, template=STRICT + ENDS + ASKS, prompt="{p}", chosen="{c}", rejected="{r}")
    assert [Path(problem.where).name for problem in caught.value.problems] == ["rows.jsonl:1"]


def test_a_reward_model_keeps_its_own_template(look: Look) -> None:
    """What `data.chat_template` names is the policy's; the reward model reads a prompt with an answer."""
    rows = [chat({"role": "system", "content": "x"}, USER), chat(USER)]
    found = refusals(
        look, rows, template=STRICT + ENDS, where="reward.model", chat_template="trl:qwen3", holds="prompts"
    )
    assert [line.partition(": ")[0] for line in found] == ["rows.jsonl:1"]
    assert look(rows[1:], template=STRICT + ENDS, where="reward.model", messages="messages", holds="prompts") == []
    [line] = refusals(look, rows, template={"chat": ENDS, "other": ENDS}, where="reward.model", holds="prompts")
    assert line == (
        "reward.model.tokenizer: the tokenizer has the chat templates chat, other, and none is called default"
        " -> set reward.model.tokenizer to a copy of its tokenizer that has one chat template, the default"
    )


def test_a_teacher_keeps_its_own_template(look: Look) -> None:
    """What `data.chat_template` names is the student's, or one of the teacher's that has no default."""
    rows = [chat({"role": "system", "content": "x"}, USER), chat(USER)]
    asked: dict[str, Any] = {"where": "teacher", "holds": "prompts", "messages": "messages"}
    with pytest.raises(ScaleupError) as caught:
        look(rows, template=STRICT + ENDS + ASKS, chat_template="trl:qwen3", **asked)
    assert [Path(problem.where).name for problem in caught.value.problems] == ["rows.jsonl:1"]
    several = {"strict": STRICT + ENDS + ASKS, "other": ENDS + ASKS}
    assert look(rows, template=several, chat_template="other", **asked) == []
    for named in ("trl:qwen3", None):
        with pytest.raises(ScaleupError) as caught:
            look(rows, template=several, chat_template=named, **asked)
        [problem] = caught.value.problems
        assert problem.where == "teacher.tokenizer"
        assert problem.what == "the tokenizer has the chat templates other, strict, and none is called default"
        assert (
            problem.remedy == "set teacher.tokenizer to a copy of its tokenizer that has one chat template, the default"
        )


def test_a_conversation_is_rendered_twice_an_answer(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the answer and with it; and once as generation would start from it."""
    rendered: list[int] = []
    render = rendering.Renderer._rendered

    def counted(*arguments: Any) -> Any:
        rendered.append(1)
        return render(*arguments)

    monkeypatch.setattr(rendering.Renderer, "_rendered", counted)
    numbers = []
    for number in (3, 4):
        rendered.clear()
        look([chat(USER, SAID, USER, SAID)] * number, messages="messages")
        numbers.append(len(rendered))
    assert numbers[1] - numbers[0] == 2 * 2 + 1


def test_a_very_long_row_is_not_read_to_its_end(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    tokenized = TextEncoder._tokenized

    def counted(self: TextEncoder, texts: list[str], **options: Any) -> Any:
        read.extend(map(len, texts))
        return tokenized(self, texts, **options)

    monkeypatch.setattr(TextEncoder, "_tokenized", counted)
    long = "the cat eats fish " * 5000
    rows: list[Any] = [{"q": "Name:", "a": f" {long}"}, {"q": long, "a": " cat"}]
    notes = look(rows, prompt="{q}", completion="{a}", max_length=16)
    assert [note.partition(" of the first 2 rows ")[2][:15] for note in notes] == ["is cut at data.", "has nothing to "]
    look([chat(USER, {"role": "assistant", "content": long})], messages="messages", max_length=16)
    assert max(read) < 1000
