"""Chat templates: those that a config names, those that fail, and those that never end."""

from copy import deepcopy

import pytest

from scaleup.data import rendering
from scaleup.data.rendering import Renderer, use_template
from scaleup.data.tokenization import Encoder
from scaleup.errors import ScaleupError
from scaleup.models.load import load_tokenizer
from scaleup.records.chat_templates import read_template
from scaleup.records.chats import Chat
from tests.unit.data import tiny

HELLO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def tokenizer(template=None):
    own = deepcopy(tiny.tokenizer("llama"))
    own.chat_template = template or own.chat_template
    return own


def refusal(named, template=None):
    with pytest.raises(ScaleupError) as caught:
        use_template(tokenizer(template), named)
    assert [problem.where for problem in caught.value.problems] == ["data.chat_template"]
    return str(caught.value)


def test_templates_by_name(tmp_path):
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    for named, words in ((str(tmp_path / "mine.jinja"), "HiHello"), ("trl:qwen3", "<think>"), ("short", "Hello")):
        ours = tokenizer({"default": "no", "short": "{{ messages[-1].content }}"})
        use_template(ours, named)
        assert words in Renderer(ours).text(HELLO, None)


def test_names_of_no_template(tmp_path):
    assert "TRL has no template 'qwen3_train' -> did you mean 'trl:qwen3_training'?" in refusal("trl:qwen3_train")
    assert "it has cohere, cohere2" in refusal("trl:zzzz")
    assert "no template named 'chat'" in refusal("chat")
    assert "mine.jinja cannot be read: No such file or directory" in refusal(str(tmp_path / "mine.jinja"))
    (tmp_path / "latin.jinja").write_bytes("é".encode("latin-1"))
    assert "it is not UTF-8" in refusal(str(tmp_path / "latin.jinja"))


def test_templates_that_do_not_compile(tmp_path):
    (tmp_path / "cut.jinja").write_text("{% for m in messages %}\n{{ m.content }", encoding="utf-8")
    assert "cut.jinja is no Jinja template: " in refusal(str(tmp_path / "cut.jinja"))
    assert "bad is no Jinja template: " in refusal("bad", {"default": "", "bad": "{% nothing %}"})


def test_a_template_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0.05)
    endless = tokenizer("{% for m in range(100000) %}{% for n in range(100000) %}{% endfor %}{% endfor %}")
    with pytest.raises(ScaleupError, match="took more than"):
        Renderer(endless).text(HELLO, None)


def test_the_model_is_saved_with_the_template_that_it_was_trained_with(tmp_path):
    data = tiny.data_config(prompt=None, completion=None, messages="messages", chat_template="trl:qwen3_training")
    ours = tokenizer()
    [row] = Encoder(ours, "causal_lm", data)([Chat(HELLO)])
    assert "<think>" in ours.decode(row.input_ids)
    ours.save_pretrained(tmp_path)
    again = load_tokenizer(tiny.model_config("llama"), str(tmp_path))
    assert again.chat_template == read_template("trl:qwen3_training")


EACH = "{% for m in messages %}{{ m.role + ':' + m.content + '</s>' }}{% endfor %}"


def test_a_time_is_one_for_all_renderings():
    ours = Renderer(tokenizer("{{ strftime_now('%H:%M:%S.%f') }}" + EACH))
    assert len({ours.text(HELLO, None) for _ in range(20)}) == 1


def test_a_template_that_draws_at_random_is_refused():
    """Its rows would be others each time they are read."""
    with pytest.raises(ScaleupError, match="other text of the same messages each time") as caught:
        Renderer(tokenizer(EACH + "{{ range(99999) | random }}")).text(HELLO, None)
    assert caught.value.problems[0].where == "data.messages"
    assert Renderer(tokenizer(EACH + "{{ [1] | random }}")).text(HELLO, None).endswith("1")


def test_a_template_that_cuts_words_is_given_words():
    """It would cut the list of parts, and show the part as Python writes it."""
    for cut in ("m.content[:3]", "m.content[:3] | string", "m.content[:3] | tojson"):
        text = Renderer(tokenizer("{% for m in messages %}{{ CUT }}{% endfor %}".replace("CUT", cut))).text(HELLO, None)
        assert text.replace('"', "") == "HiHel"


def test_a_tokenizer_without_a_template_is_no_fault_of_a_row():
    bare = tokenizer()
    bare.chat_template = None
    with pytest.raises(ScaleupError) as caught:
        Renderer(bare).text(HELLO, None)
    assert [problem.where for problem in caught.value.problems] == ["data.chat_template"]
