"""What is learned of conversations: of every template that TRL ships, and others, the oracle's characters, or a refusal
that is listed here and in docs/chat-templates.md."""

import re
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from scaleup.data.chat import ChatTemplate
from scaleup.data.text import TextEncoder
from scaleup.errors import ScaleupError
from scaleup.records.chats import Chat
from tests.unit.data import tiny
from tests.unit.data.chat_looks import CALL, FOLDER, LOOKS, OWN, TOOLS
from tests.unit.data.chat_oracle import expected
from tests.unit.data.chat_shapes import RESULT, SHAPES, THINK, says, turns, user

ALL = [*LOOKS, *OWN]
MARKED = [name for name, look in LOOKS.items() if look.marks]

SYSTEM = {shape for shape in SHAPES if shape.startswith("system")}
CALLS = {"calls", "calls, answers", "calls twice", "calls, answers, on", "calls, no tools", "unlearned call"}
NO_ORDER = {"assistant first", "system, assistant first", "assistant twice", "assistant twice, on"} | CALLS
TWICE = {"assistant twice"}

REFUSED = {
    **dict.fromkeys(("cohere", "cohere_training", "cohere2", "cohere2_training"), NO_ORDER),
    **dict.fromkeys(("gemma", "gemma_training"), NO_ORDER | SYSTEM),
    **dict.fromkeys(("gemma3", "gemma3_training"), NO_ORDER),
    **dict.fromkeys(("diffusion_gemma", "gemma4_v5"), TWICE),
    **dict.fromkeys(("idefics3", "idefics3_training", "smolvlm", "smolvlm_training"), CALLS),
    **dict.fromkeys(("lfm2", "lfm2_training", "llama3", "llama3_training", "llava_next", "llava_next_training"), CALLS),
    **dict.fromkeys(("phi3", "phi3_training", "phi3_5", "phi3_5_training"), CALLS),
    **dict.fromkeys(("qwen2_5_vl", "qwen2_5_vl_training"), CALLS),
    **dict.fromkeys(OWN, CALLS),
    **dict.fromkeys(("llama2", "mistral"), CALLS | SYSTEM),
    "asks for a system": SHAPES.keys() - {"system 1", "system 3", "system, assistant first"},
}
"""What is refused, by template."""

DEEPSEEK = {
    "call": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    '```json\n{"city": "X"}\n```<｜tool▁call▁end｜>',
    "again": '\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "X"}\n```<｜tool▁call▁end｜>',
    "ends": "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
    "fine": "Fine.<｜end▁of▁sentence｜>",
}
HEADED = "<｜Assistant｜>", "<｜tool▁outputs▁end｜>"
SPECIAL = {
    # Behind a first call these templates show a second one as if it went on with that.
    ("deepseek_r1_distill", "calls twice"): "{call}{fine}",
    ("deepseekv3", "calls twice"): "{call}{ends}{fine}",
    ("deepseek_r1_distill_training", "calls twice"): f"{HEADED[0]}{{call}}{{again}}{{ends}}{HEADED[1]}{{fine}}",
    ("deepseekv3_training", "calls twice"): f"{HEADED[0]}{{call}}{{ends}}{{again}}{{ends}}{HEADED[1]}{{fine}}",
    # These make one answer of two.
    ("diffusion_gemma", "assistant twice, on"): "Three.<turn|>\n",
    ("diffusion_gemma_training", "assistant twice"): "One.Two.<turn|>\n",
    ("diffusion_gemma_training", "assistant twice, on"): "One.Two.<turn|>\nThree.<turn|>\n",
    ("gemma4_v5", "assistant twice, on"): "Three.<turn|>\n",
    # The line break belongs to the words.
    ("glm4moe", "says nothing first"): "\n<think></think>\n<think></think>\nAnswer 0.",
    ("glm4moe", "says nothing last"): "\n<think></think>\nAnswer 0.\n<think></think>",
    ("glm4moe_training", "says nothing first"): "\n<think></think><|user|>\n<think></think>\nAnswer 0.<|user|>",
    ("glm4moe_training", "says nothing last"): "\n<think></think>\nAnswer 0.<|user|>\n<think></think><|user|>",
    # The second answer is laid behind the first as it was when it was given.
    ("qwen3", "assistant twice"): "<think>\n\n</think>\n\nOne.<|im_end|>\n<think>\n\n</think>\n\nTwo.<|im_end|>\n",
}
"""What is learned where no rule of the oracle holds."""


@cache
def tokenizer_of(name):
    tokenizer = deepcopy(tiny.tokenizer("llama"))
    tokenizer.chat_template = OWN[name][0] if name in OWN else (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


@cache
def template_of(name):
    return ChatTemplate(tokenizer_of(name))


def look_of(name):
    return OWN[name][1] if name in OWN else LOOKS[name]


def accepted(name):
    return {shape: chat for shape, chat in SHAPES.items() if shape not in REFUSED.get(name, ())}


def covered(spans):
    return sorted({place for start, end in spans for place in range(start, end)})


def learned(rendered):
    return "".join(rendered.text[start:end] for start, end in rendered.spans)


def until_learned(chat):
    return chat.messages[: chat.answers[-1] + 1]


def as_transformers(name, messages, tools, **options):
    """What plain Transformers make of messages: in parts, or with calls and no content, as the template wants them."""
    if name.startswith(("idefics3", "smolvlm", "llava_next")):
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    spelled = {**CALL, "function": {**CALL["function"], "arguments": '{"city": "X"}'}}
    for content, call in product((None, ""), (CALL, spelled)):
        shown = [{**m, "content": content, "tool_calls": [call]} if "tool_calls" in m else m for m in messages]
        with suppress(Exception):  # a template may fail in any way
            if shown == messages or "weather" in tokenizer_of(name).apply_chat_template(shown, tools, tokenize=False):
                return tokenizer_of(name).apply_chat_template(shown, tools, **options)
    raise AssertionError(f"{name} refuses {messages}")


def test_every_template_of_trl_is_looked_at():
    assert {file.stem for file in FOLDER.glob("*.jinja")} == LOOKS.keys()
    marks = {file.stem for file in FOLDER.glob("*.jinja") if re.search(r"\{%-?\s*generation", file.read_text())}
    assert marks == set(MARKED)


@pytest.mark.parametrize("name", ALL)
def test_what_is_learned_is_what_the_oracle_says(name):
    template, refused = template_of(name), set()
    for shape, chat in SHAPES.items():
        try:
            rendered = template.conversation(chat)
        except ScaleupError:
            refused.add(shape)
            continue
        if (name, shape) in SPECIAL:
            assert learned(rendered) == SPECIAL[name, shape].format(**DEEPSEEK), shape
            continue
        spans = expected(look_of(name), rendered.text, until_learned(chat), chat.unlearned)
        assert covered(rendered.spans) == covered(spans), (shape, rendered, spans)
    assert refused == REFUSED.get(name, set())


SAID = {
    "conversations that the assistant begins": {"assistant first", "system, assistant first"},
    "two answers in a row": {"assistant twice", "assistant twice, on"},
    "a last answer right behind another one": TWICE,
    "calls of tools": CALLS,
    "a system's words": SYSTEM,
}


def test_the_docs_say_what_is_refused():
    page = (
        (Path(__file__).parents[3] / "docs/chat-templates.md")
        .read_text(encoding="utf-8")
        .partition("## What is learned")[0]
    )
    said = {}
    for templates, words in re.findall(r"^\| (`.*?`) \| (.*?) \|$", page, re.MULTILINE):
        shapes = set().union(*(shapes for phrase, shapes in SAID.items() if phrase in words))
        for name in re.findall(r"`(.*?)`", templates):
            said[name] = said.get(name, set()) | shapes
    assert said == {name: set(shapes) for name, shapes in REFUSED.items() if name in LOOKS}


OUR_OWN_TEXT = {("qwen3", "assistant twice")}
"""Where an answer is laid behind its own history: no one text of the template's shows both as they were given."""
NULL = {(name, shape) for name in ("deepseek_r1_distill", "deepseek_r1_distill_training") for shape in CALLS}
"""These want a content that is null, which Transformers' apply_chat_template takes away."""


@pytest.mark.parametrize("name", ALL)
def test_the_text_is_what_the_template_makes(name):
    for shape, chat in accepted(name).items():
        if (name, shape) not in OUR_OWN_TEXT | NULL:
            text = as_transformers(name, until_learned(chat), chat.tools, tokenize=False)
            assert template_of(name).conversation(chat).text == text, shape


@pytest.mark.parametrize("name", MARKED)
def test_marks_are_those_of_transformers(name):
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    for shape, chat in accepted(name).items():
        if chat.unlearned or (name, shape) in NULL:
            continue
        theirs = as_transformers(name, chat.messages, chat.tools, **options)
        rendered = template_of(name).conversation(chat)
        [(ids, mask)] = TextEncoder(tokenizer_of(name)).masked([(rendered.text, rendered.spans)])
        assert ids == theirs["input_ids"], shape
        wanted = [bool(each) for each in theirs["assistant_masks"]]
        if (name, shape) == ("diffusion_gemma_training", "other scripts"):  # of a mark's last character they take the
            mask = [both and our for both, our in zip(wanted, mask, strict=True)]  # first token only
        assert mask == wanted, shape


@pytest.mark.parametrize("name", ALL)
def test_a_row_of_each_turn_is_as_it_is_at_inference(name):
    """What is learned begins where the generation prompt of the history ends."""
    template, look, refused, others = template_of(name), look_of(name), set(), set()
    for shape, chat in accepted(name).items():
        for row in chat.split():
            history = replace(row, messages=row.messages[:-1])
            try:
                rendered = template.conversation(row)
            except ScaleupError:
                refused.add(shape)
                continue
            assert not rendered.num_rewritten + rendered.num_refused
            prompt = template.prompt(history) if history.messages else ""
            if not rendered.text.startswith(prompt):
                others.add(shape)
            elif prompt and not look.marks:
                assert (rendered.spans[0][0] == len(prompt)) is (name != "no prompt"), (shape, prompt, rendered)
    assert refused == next((shapes for names, shapes in SPLIT_REFUSED.items() if re.match(names, name)), set())
    thinks = next((shapes for names, shapes in OTHER_PROMPT.items() if re.match(names, name)), set())
    assert others == accepted(name).keys() & thinks


FIRST = {"assistant first", "system, assistant first"}
TWICE_ON = {"assistant twice, on"}
REASONS = {"reasons", "reasons thrice", "unlearned, reasons"}
SPLIT_REFUSED = {
    "qwen3_[568]": FIRST,
    "(diffusion_gemma|gemma4_v5)$": TWICE_ON,
    "(deepseek_r1_distill|deepseekv3)$": {"calls twice"},
}
"""Rows of one turn that are refused, of conversations that are not."""
OTHER_PROMPT = {
    "deepseek": SHAPES.keys() - {"unlearned call"},
    "nemotron": SHAPES.keys() - REASONS,
    "qwen3_5_nothink": REASONS,
    "gemma4(_v3|_v4)?$|diffusion_gemma_training": TWICE | TWICE_ON,
}
"""Where the generation prompt begins otherwise than an answer: with a thought that is not shown, or with a header."""


def test_train_on():
    chat, template = SHAPES["unlearned last"], template_of("chatml")
    assert learned(template.conversation(chat)) == "Answer 0.<|im_end|>\nAnswer 1.<|im_end|>\n"
    assert learned(template.conversation(chat, "last")) == "Answer 1.<|im_end|>\n"
    everything = template.conversation(SHAPES["turns 3"], "all")
    assert learned(everything) == everything.text == template.whole(chat)
    assert everything.text == learned(template.conversation(chat, "all")) + "Answer 2.<|im_end|>\n"
    assert learned(template_of("qwen3_training").conversation(chat, "last")).endswith("Answer 1.<|im_end|>\n")
    with pytest.raises(ScaleupError, match="no answer that is learned"):
        template.conversation(Chat(turns(1), unlearned=frozenset({1})))


@pytest.mark.parametrize("name", ALL)
def test_of_all_that_is_said_what_is_not_to_be_learned_is_not(name):
    """Whoever says it, in words, with reasons before them or in calls of tools."""
    shapes = {
        "system 3": ({0, 3, 4}, ["Be brief.", "Question 1?", "Answer 1."], ["Question 0?", "Answer 0.", "Answer 2."]),
        "reasons thrice": ({1, 3, 4, 5}, ["Answer", "Think", "Question 2?"], ["Question 0?", "Question 1?"]),
        "calls, answers": ({1}, ["city"], ["Fine."]),
    }
    for shape, (unlearned, silent, others) in shapes.items():
        if shape in REFUSED.get(name, ()):
            continue
        chat = replace(SHAPES[shape], unlearned=frozenset(unlearned), tools=None)
        if (everything := tried(name, replace(chat, unlearned=frozenset()))) is None:
            continue
        rendered = template_of(name).conversation(chat, "all")
        text, said = learned(rendered), "".join(rendered.text[start:end] for start, end in rendered.silent)
        assert rendered.text == everything.text and len(text) + len(said) == len(rendered.text)
        assert not any(words in text for words in silent), (shape, text)
        assert all(words in text for words in others if words in rendered.text), (shape, text)


def tried(name, chat):
    try:
        return template_of(name).conversation(chat, "all")
    except ScaleupError:
        return None


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
@pytest.mark.parametrize("name", ["chatml", "lfm2", "deepseek_r1_distill"])
def test_no_call_of_a_tool_is_left_out(name, train_on):
    """LFM2 writes null for it, and R1 drops those beside words."""
    said = says("Let me see.", tool_calls=[CALL])
    for chat in (Chat([user(), said]), Chat([user(), said, RESULT, says("Fine.")])):
        with pytest.raises(ScaleupError, match=r"leaves out messages\[1\].tool_calls\[0\]"):
            template_of(name).conversation(chat, train_on)
    with pytest.raises(ScaleupError, match="leaves out"):
        template_of(name).prompt(Chat([user(), said, RESULT]))
    twice = Chat([user(), says("", tool_calls=[CALL, CALL]), RESULT, RESULT, says("Fine.")])
    with pytest.raises(ScaleupError, match=r"tool_calls\[1\]"):
        template_of("gptoss").conversation(twice)


KNOWS_NAMES = (
    "{% for m in messages %}{{ m.role + ':' }}{% for c in m.tool_calls or [] %}"
    "{% if c.function.name != 'weather' %}{{ raise_exception('unknown: ' + c.function.name) }}{% endif %}"
    "{{ c.function.name | upper }}{{ c.function.arguments | tojson }}{% endfor %}{{ (m.content or '') + '</s>' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def made_of(template):
    tokenizer = deepcopy(tiny.tokenizer("llama"))
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer)


def test_templates_that_check_names_or_write_them_otherwise():
    wanted = 'WEATHER{"city": "X"}</s>Fine.</s>'
    checks, spells = KNOWS_NAMES, KNOWS_NAMES.replace("!= 'weather'", "== ''")
    for template in (checks, spells):
        assert learned(made_of(template).conversation(SHAPES["calls, answers"])) == wanted
    leaves_out = checks.replace("{{ c.function.name | upper }}{{ c.function.arguments | tojson }}", "")
    with pytest.raises(ScaleupError, match=r"leaves out messages\[1\].tool_calls\[0\]"):
        made_of(leaves_out).conversation(SHAPES["calls, answers"])
    other = {**CALL, "function": {**CALL["function"], "name": "clock"}}
    with pytest.raises(ScaleupError, match="unknown: clock"):
        made_of(checks).conversation(Chat([user(), says(None, tool_calls=[other])]))


MARKED_LAST = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}SHOWN{{ '</s>' }}{% endgeneration %}"
    "{% else %}{{ 'U:' + m.content + '</s>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


def test_marks_of_what_is_shown_otherwise_later_on():
    chat = Chat(turns(1, reasoning_content="Think") + turns(2, reasoning_content="Think")[2:])
    drops_thought = "{{ m.reasoning_content if loop.last }}{{ m.content }}"
    rendered = made_of(MARKED_LAST.replace("SHOWN", drops_thought)).conversation(chat)
    assert (rendered.num_rewritten, rendered.num_altered) == (0, 1)  # by its word, and told
    drops_words = "{{ m.content if loop.last else '...' }}"
    rendered = made_of(MARKED_LAST.replace("SHOWN", drops_words)).conversation(chat)
    assert learned(rendered) == "Answer 1.</s>" and rendered.num_rewritten == 1
    ends_otherwise = "{{ m.content }}{{ '' if loop.last else '<next>' }}"
    rendered = made_of(MARKED_LAST.replace("SHOWN", ends_otherwise)).conversation(Chat(turns(2)))
    assert learned(rendered) == "Answer 0.<next></s>Answer 1.</s>"
    assert (rendered.num_rewritten, rendered.num_altered) == (0, 0)


def test_what_gpt_oss_thought_before_a_call_is_learned():
    """Its template drops that once the answer is there; while the answer is written it is there."""
    chat = Chat([user(), says(None, tool_calls=[CALL], **THINK), RESULT, says("Fine.")], TOOLS)
    rendered = template_of("gptoss").conversation(chat)
    thought, call, answer = "<|channel|>analysis<|message|>Think<|end|>", LOOKS["gptoss"].call, "Fine.<|return|>"
    assert learned(rendered) == f"{thought}<|start|>assistant{call}<|channel|>final<|message|>{answer}"
    assert rendered.text[: rendered.spans[1][0]] == template_of("gptoss").prompt(
        replace(chat, messages=chat.messages[:3])
    )
    marked = template_of("gptoss_training").conversation(chat)
    assert "Think" not in marked.text and marked.num_altered == 1


def test_what_a_template_does_not_show_is_counted():
    chats = {
        "qwen3": Chat([{"role": "developer", "content": "Be brief."}, *turns(1)]),
        "lfm2_2_5": Chat(turns(1, reasoning_content="First thought") + turns(1)),
        "deepseekv3": Chat([user(), says("<think>a</think>b")]),
    }
    assert {name: template_of(name).conversation(chat).num_altered for name, chat in chats.items()} == dict.fromkeys(
        chats, 1
    )
    assert template_of("qwen3").conversation(SHAPES["turns 3"]).num_rewritten == 2
    assert template_of("qwen3_5_think").conversation(SHAPES["assistant first"]).num_refused == 1


@pytest.mark.parametrize(
    ("name", "end", "tokens"),
    [
        ("chatml", "<|im_end|>\n", ["<|im_end|>"]),
        ("gptoss", "<|return|>", ["<|call|>", "<|return|>"]),
        ("gemma4", "<turn|>\n", ["<turn|>", "<|tool_response>"]),
        ("gemma4_v2", "<turn|>\n", ["<turn|>"]),
        ("glm4moe_training", "<|user|>", ["<|observation|>", "<|user|>"]),
        ("glm4moe", "", []),
        ("deepseek_r1_distill", "<｜end▁of▁sentence｜>", ["<｜end▁of▁sentence｜>"]),
        ("llama2", " <|im_end|>", ["<|im_end|>"]),
        ("phi3", "<|end|>\n", ["<|end|>"]),
        ("ends the chat", "<|end|>", ["<|end|>"]),
        ("ends the chat alone", "\n<|im_end|>", ["<|im_end|>"]),
        ("alpaca", "\n\n", []),
    ],
)
def test_what_ends_an_answer(name, end, tokens):
    """A marker that stands between two calls ends no answer."""
    tokenizer = deepcopy(tokenizer_of(name))
    markers = ["<|return|>", "<|call|>", "<turn|>", "<|tool_response>", "<|observation|>", "<|user|>", "<|assistant|>"]
    markers += ["<｜end▁of▁sentence｜>", "<｜tool▁call▁end｜>", "</tool_call>", "<|end|>", "</think>", "<end_of_turn>"]
    tokenizer.add_tokens(markers, special_tokens=True)
    template = ChatTemplate(tokenizer)
    assert template.end == end
    assert sorted(tokenizer.convert_ids_to_tokens(template.end_ids)) == sorted(tokens)


def test_a_word_is_no_end():
    """A quotation mark behind an answer is a token, but not one that only ends."""
    tokenizer = deepcopy(tokenizer_of("chatml"))
    tokenizer.chat_template = (
        """{% for m in messages %}{{ m['role'] + ': "' + m['content'] + '"\n' }}{% endfor %}"""
        """{% if add_generation_prompt %}{{ 'assistant: "' }}{% endif %}"""
    )
    assert '"' in tokenizer.get_vocab()
    template = ChatTemplate(tokenizer)
    assert template.end.strip() == '"' and template.end_ids == []


def test_a_template_of_its_own_for_tools():
    """Of a tokenizer with several: its turns end otherwise, and generation stops at the ends of both."""
    tokenizer = deepcopy(tokenizer_of("chatml"))
    ends = ["<|im_end|>", "<|endoftext|>"]
    tokenizer.chat_template = {
        name: "{% for m in messages %}{{ m['role'] + ':' + m['content'] + 'END' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}".replace("END", end)
        for name, end in zip(("default", "tool_use"), ends, strict=True)
    }
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    template = ChatTemplate(tokenizer)
    for tools, end in zip((None, [{"type": "function"}]), ends, strict=True):
        rendered = template.conversation(Chat(messages, tools))
        assert [rendered.text[start:stop] for start, stop in rendered.spans] == [f"b{end}\n"] * 2
    assert sorted(tokenizer.convert_ids_to_tokens(template.end_ids)) == sorted(ends)
