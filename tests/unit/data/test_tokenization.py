"""Examples to token lists: what is learned, by position; the seam between prompt and completion; chats; seq2seq."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from scaleup.config.data import DataConfig, SourceConfig
from scaleup.data.tokenization import IGNORE, Encoder, last_answer, own_template
from scaleup.errors import ScaleupError
from scaleup.records.chat_templates import read_template
from scaleup.records.chats import Chat
from scaleup.records.examples import PlainText, PromptCompletion
from tests.unit.data import tiny

PAD, EOS = "<|endoftext|>", "<|im_end|>"
CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "so long"},
]
STRICT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "{{ message['content'] }}"
    "{% endfor %}"
)
FORGETFUL = (  # as reasoning models' templates do: an answer is shown in full only while it is the last message
    "{% for message in messages %}"
    "{{ message['role'] + ':' + (message['content'] if loop.last or message['role'] == 'user' else '...') + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def wrapped(backend, **names):
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{"pad_token": PAD, "eos_token": EOS, **names})


def trained(corpus, vocab_size, **pre_tokenizer):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(**pre_tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    return backend


@cache
def merging():
    """A tokenizer that merges across anything, blanks and colons too."""
    corpus = ["label: good", "label: bad", "is it:good", "is it:bad", "a b a b", "ab ab ba ba"] * 20
    return wrapped(trained(corpus, 330, add_prefix_space=False, use_regex=False))


def ending_with_eos(start=None):
    """A causal tokenizer that puts eos behind everything, as Llama's does with add_eos_token."""
    backend = trained([], 258, add_prefix_space=False, use_regex=False)
    single = f"{start or ''} $A {EOS}".strip()
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(PAD, 0), (EOS, 1)])
    return wrapped(backend)


def encoder(tokenizer=None, task="causal_lm", **keys):
    return Encoder(tokenizer or tiny.tokenizer("llama"), task, tiny.data_config(**keys))


def learned(row):
    """(position, token) of every label."""
    return [(at, int(label)) for at, label in enumerate(row.labels) if label != IGNORE]


def runs(encode, row):
    """The learned stretches, decoded."""
    places = [at for at, _ in learned(row)]
    stretches = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return [encode.tokenizer.decode(row.input_ids[stretch]) for stretch in stretches]


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_the_completion_is_learned_and_the_prompt_is_not(name, pad_is_eos):
    """By position: the prompt holds the completion's words, and an eos, and still has no label."""
    tokenizer = tiny.tokenizer(name, pad_is_eos)
    prompt, completion = f"yes{EOS} or yes?", " yes"
    [row] = encoder(tokenizer)([PromptCompletion(prompt, completion)])
    start = len(tokenizer(prompt)["input_ids"])
    expected = [*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]
    assert row.input_ids.tolist() == expected
    assert learned(row) == list(enumerate(expected))[start:]
    assert (row.input_ids[:start] == tokenizer.eos_token_id).any()


@pytest.mark.parametrize("example", [PromptCompletion("a b", " c"), PlainText("a b c")])
def test_all_is_learned(example):
    [row] = encoder(completion_only_loss=False)([example])
    assert (row.labels == row.input_ids).all()
    assert encoder().tokenizer.decode(row.input_ids) == f"a b c{EOS}"


def test_plain_text_is_learned_whatever_the_setting():
    [row] = encoder(completion_only_loss=True)([PlainText("a b c")])
    assert (row.labels == row.input_ids).all()


@pytest.mark.parametrize("start", ["no eos added", None, EOS])
@pytest.mark.parametrize(
    "example", [PromptCompletion("a:", " b"), PromptCompletion("a:", f" b{EOS}"), PlainText("a b")]
)
def test_eos_comes_once_at_the_end(start, example):
    """Whether the text ends with it already, or the tokenizer adds it, or both, or neither."""
    tokenizer = tiny.tokenizer("llama") if start == "no eos added" else ending_with_eos(start)
    encode = encoder(tokenizer)
    [row] = encode([example])
    eos = tokenizer.eos_token_id
    assert [int(token) for token in row.input_ids[-2:]] == [tokenizer.convert_tokens_to_ids("b"), eos]
    assert row.labels[-1] == eos
    starts_with_eos = tokenizer("a")["input_ids"][0] == eos
    assert (row.input_ids == eos).sum() == 1 + starts_with_eos
    if isinstance(example, PromptCompletion):
        [prompt] = encode.prompts([example])
        assert row.input_ids[: len(prompt)].tolist() == prompt and learned(row)[0][0] == len(prompt)


def test_a_prompt_that_ends_with_eos_keeps_it():
    for tokenizer in (tiny.tokenizer("llama"), ending_with_eos()):
        encode, example = encoder(tokenizer), PromptCompletion(f"a{EOS}", "b")
        [row], [prompt] = encode([example]), encode.prompts([example])
        assert tokenizer.decode(row.input_ids) == f"a{EOS}b{EOS}"
        assert tokenizer.decode(prompt) == f"a{EOS}"


def test_a_token_that_would_span_the_seam_is_split_there():
    encode, example = encoder(merging()), PromptCompletion("is it:", "good")
    joint, prompt = (merging()(text)["input_ids"] for text in ("is it:good", "is it:"))
    assert joint[: len(prompt)] != prompt, "the tokenizer merges across the seam"
    [row] = encode([example])
    assert row.input_ids.tolist() == [*prompt, *merging()("good")["input_ids"], merging().eos_token_id]
    assert learned(row)[0][0] == len(prompt)
    assert encode.prompts([example]) == [prompt]


def test_elsewhere_prompt_and_completion_are_tokenized_together():
    """A tokenizer that puts a blank before any text would put one into the middle."""
    backend = trained(["is it good"] * 20, 280, add_prefix_space=True, use_regex=True)
    encode = encoder(wrapped(backend))
    [row] = encode([PromptCompletion("is it:", "good")])
    assert encode.tokenizer.decode(row.input_ids) == f" is it:good{EOS}"
    assert encode.tokenizer("good")["input_ids"] != row.input_ids[-2:-1].tolist()


@given(st.text("ab :labelgood", min_size=1, max_size=12), st.text("ab :labelgood", min_size=1, max_size=12))
def test_generation_starts_where_training_had_its_prompt(prompt, completion):
    encode, example = encoder(merging()), PromptCompletion(prompt, completion)
    [row], [ids] = encode([example]), encode.prompts([example])
    assert row.input_ids[: len(ids)].tolist() == ids
    assert learned(row) == list(enumerate(row.input_ids.tolist()))[len(ids) :]
    assert merging().decode(row.input_ids) == f"{prompt}{completion}{EOS}"
    assert row.num_labels == len(row.input_ids) - len(ids)


def test_too_long_rows():
    """Tiny Llama's tokens are bytes: 'abc' + 'defg' + eos are 8."""
    example = PromptCompletion("abc", "defg")
    [whole] = encoder(max_length=8)([example])
    assert len(whole.input_ids) == 8 and whole.num_labels == 5
    [cut] = encoder(max_length=6)([example])
    assert cut.input_ids.tolist() == whole.input_ids[:6].tolist() and cut.num_labels == 3
    assert encoder().tokenizer.eos_token_id not in cut.labels, "a cut answer has not ended"
    assert encoder(max_length=7, too_long="drop")([example]) == [None]
    assert encoder(max_length=8, too_long="drop")([example])[0].num_labels == 5


def test_rows_without_a_label_left_are_dropped():
    example = PromptCompletion("abc", "defg")
    assert encoder(max_length=3)([example]) == [None]
    assert encoder(max_length=4)([example])[0].num_labels == 1
    assert encoder(max_length=3, completion_only_loss=False)([example])[0].num_labels == 3
    assert encoder()([]) == []


def test_prompts_of_generation_keep_their_end():
    assert encoder(max_length=4).prompt_ids(["abcdefg"]) == [encoder().tokenizer("defg")["input_ids"]]


@pytest.mark.parametrize(
    ("messages", "answers"),
    [
        (CHAT[1:3], ["hello"]),
        (CHAT[:3], ["hello"]),
        (CHAT, ["hello", "so long"]),
        (CHAT[:4], ["hello"]),
        ([*CHAT, {"role": "assistant", "content": "really"}], ["hello", "so long", "really"]),
    ],
)
def test_a_chat_teaches_the_assistants_turns(messages, answers):
    """Each with what ends it. What follows the last of them is left away: there is nothing to learn from it."""
    encode = encoder()
    [row] = encode([Chat(messages)])
    turns = [f"{answer}{EOS}\n" for answer in answers]
    learned_text = encode.tokenizer.decode([token for _, token in learned(row)])
    assert learned_text == "".join(turns)
    last = max(at for at, message in enumerate(messages) if message["role"] == "assistant")
    whole = encode.tokenizer.apply_chat_template(messages[: last + 1], tokenize=False)
    assert encode.tokenizer.decode(row.input_ids) == whole
    assert row.input_ids.tolist() == encode.tokenizer(whole)["input_ids"]
    assert runs(encode, row) == turns
    [prompt] = encode.prompts([Chat(messages)])
    assert encode.tokenizer.decode(prompt) == whole.removesuffix(turns[-1])
    assert row.input_ids[: len(prompt)].tolist() == prompt


def test_a_chat_that_is_cut_before_its_answer_is_dropped():
    encode = encoder()
    [prompt] = encode.prompts([Chat(CHAT[:3])])
    assert encoder(max_length=len(prompt))([Chat(CHAT[:3])]) == [None]
    assert encoder(max_length=len(prompt) + 1)([Chat(CHAT[:3])])[0].num_labels == 1


def test_the_last_answer():
    assert last_answer(Chat(CHAT)) == 4
    assert last_answer(Chat(CHAT[:4])) == 2


@pytest.mark.parametrize(
    ("template", "messages", "words"),
    [
        (STRICT, CHAT[:3], "no system messages"),
        ("{% for message in messages %}{{ message.nothing.at.all }}{% endfor %}", CHAT, "has no attribute"),
        ("{{ messages.__class__.__mro__[-1].__subclasses__() }}", CHAT, "unsafe"),
        ("{{ messages.append(1) }}", CHAT, "unsafe"),
    ],
)
def test_templates_that_cannot_be_used(template, messages, words):
    encode = encoder(tiny.tokenizer("llama"))
    encode.tokenizer.chat_template = template
    with pytest.raises(ScaleupError, match=words) as caught:
        encode([Chat(messages)])
    assert caught.value.problems[0].where == "data.messages"


def test_a_template_that_rewrites_history_teaches_the_last_answer_behind_it():
    """As it is at inference. It ends no turn, so nothing is learned but the words."""
    encode = encoder(tiny.tokenizer("llama"))
    encode.tokenizer.chat_template = FORGETFUL
    [one], [two] = encode([Chat(CHAT[1:3])]), encode([Chat(CHAT[1:])])
    assert runs(encode, one) == ["hello\n"] and runs(encode, two) == ["so long\n"]
    assert encode.tokenizer.decode(two.input_ids) == "user:hi\nassistant:...\nuser:bye\nassistant:so long\n"
    assert encode.rendered(Chat(CHAT[1:])).num_rewritten == 1


@pytest.mark.parametrize(("name", "start"), [("t5", ""), ("bart", "<s>")])
def test_seq2seq_rows(name, start):
    tokenizer = tiny.tokenizer(name)
    encode = encoder(tokenizer, "seq2seq_lm")
    example = PromptCompletion("a b:", " c")
    [row] = encode([example])
    assert tokenizer.decode(row.input_ids) == f"{start}a b:</s>"
    assert tokenizer.decode(row.labels) == f"{start} c</s>"
    assert row.num_labels == len(row.labels)
    assert encode.prompts([example]) == [row.input_ids.tolist()]


def test_too_long_seq2seq_rows():
    """max_length holds for either side by itself. A cut prompt still ends as T5 expects; a cut answer has not ended."""
    tokenizer = tiny.tokenizer("t5")
    rows = [PromptCompletion("abcd", "e"), PromptCompletion("a", "bcde"), PromptCompletion("abc", "def")]
    cut = encoder(tokenizer, "seq2seq_lm", max_length=4)(rows)
    assert [tokenizer.decode(row.input_ids) for row in cut] == ["abc</s>", "a</s>", "abc</s>"]
    assert [tokenizer.decode(row.labels) for row in cut] == ["e</s>", "bcde", "def</s>"]
    first, second, third = encoder(tokenizer, "seq2seq_lm", max_length=4, too_long="drop")(rows)
    assert first is None and second is None and third is not None
    assert encoder(tokenizer, "seq2seq_lm", max_length=4).prompts(rows[:1]) == [cut[0].input_ids.tolist()]


@pytest.mark.parametrize(("example", "kind"), [(PlainText("a"), "text"), (Chat(CHAT), "messages")])
def test_seq2seq_models_need_pairs(example, kind):
    with pytest.raises(ScaleupError) as caught:
        encoder(tiny.tokenizer("t5"), "seq2seq_lm")([example])
    assert caught.value.problems[0].where == f"data.{kind}"


def test_a_default_system_prompt_is_not_learned():
    """Nor the header of an answer that begins the conversation, of which no generation prompt tells."""
    encode = encoder(tiny.tokenizer("llama"))
    chatml = encode.tokenizer.chat_template
    default = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful<|im_end|>\n{% endif %}"
    encode.tokenizer.chat_template = default + chatml
    welcome = {"role": "assistant", "content": "Welcome!"}
    [row] = encode([Chat([welcome, *CHAT[1:3]])])
    assert runs(encode, row) == [f"Welcome!{EOS}\n", f"hello{EOS}\n"]
    assert encode.tokenizer.decode(row.input_ids).startswith("<|im_start|>system\nBe helpful")


def learned_of(values, template=None, **data):
    """The learned stretches of each row that is made of one in a file."""
    tokenizer = tiny.tokenizer("llama")
    encode = Encoder(
        tokenizer, "causal_lm", DataConfig.model_validate({"messages": "messages", "max_length": 2000, **data})
    )
    tokenizer.chat_template = template or tokenizer.chat_template
    return [runs(encode, row) for row in encode(encode.maker(SourceConfig(path="rows.jsonl"))(values, 0))]


@pytest.mark.parametrize("content", [None, ""])
def test_a_call_is_learned_and_a_message_of_weight_0_is_not(content):
    """OpenAI's form: no content beside tool_calls."""
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "X"}'}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "content": "12 C"},
        {"role": "assistant", "content": "12 degrees", "weight": 0},
    ]
    qwen = read_template("trl:qwen2_5")
    shown = f'<tool_call>\n{{"name": "weather", "arguments": {{"city": "X"}}}}\n</tool_call>{EOS}\n'
    assert learned_of({"messages": messages, "tools": tools}, qwen) == [[shown]]
    with pytest.raises(ScaleupError, match="leaves out messages"):
        learned_of({"messages": messages, "tools": tools})


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("qwen3", [], ["<think>\n\n</think>\n\nSure<|im_end|>\n"]),
        ("phi3", ["Hello<|end|>\n"], ["Sure<|end|>\n"]),
        ("deepseek_r1_distill", ["Hello<｜end▁of▁sentence｜>"], ["Sure<｜end▁of▁sentence｜>"]),
    ],
)
def test_chats_of_thinking_templates_are_learned_as_they_are_at_inference(name, first, last):
    """Whole, and as a row of each turn."""
    said = ("Hi", "Hello", "More", "Sure")
    chat = [{"role": ("user", "assistant")[at % 2], "content": words} for at, words in enumerate(said)]
    template = read_template(f"trl:{name}")
    assert learned_of({"messages": chat}, template) == [first + last]
    alone = [last[0].replace("Sure", "Hello")]
    assert learned_of({"messages": chat}, template, split_turns=True) == [alone, last]
    assert learned_of({"messages": chat[:2]}, template) == [alone]
    assert learned_of({"messages": chat}, template, train_on="last") == [last]


@pytest.mark.parametrize(
    ("own", "named", "read"),
    [
        ("OWN", None, None),
        ("OWN", "x.jinja", None),
        (None, "x.jinja", "x.jinja"),
        ({"default": "OWN", "rag": "R"}, "rag", None),
        ({"chat": "C", "rag": "R"}, "rag", "rag"),
        ({"chat": "C", "rag": "R"}, "x.jinja", None),
    ],
)
def test_what_data_names_is_another_models(own, named, read):
    """A teacher has its own template; of several without a default, what `data` names may choose one."""
    tokenizer = tiny.tokenizer("llama")
    tokenizer.chat_template = own
    assert own_template(tokenizer, tiny.data_config(chat_template=named)).chat_template == read


@pytest.mark.parametrize("everything", [{"train_on": "all"}, {"completion_only_loss": False}])
def test_where_all_is_learned_weight_0_is_not(everything):
    """Of any role; a token that reaches into such words neither."""
    tokenizer = tiny.tokenizer("llama")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    chat = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    messages = [{"role": role, "content": words} for role, words in chat]
    encoder = Encoder(tokenizer, "causal_lm", tiny.data_config(**everything))
    text, end = tokenizer.apply_chat_template(messages, tokenize=False), tokenizer.eos_token
    for unlearned in ((), (1,), (0, 3)):
        [row] = encoder([Chat(messages, unlearned=frozenset(unlearned))])
        wanted = text
        for turn in unlearned:
            wanted = wanted.replace(chat[turn][1] + end, "")
        assert tokenizer.decode(row.input_ids) == text
        assert tokenizer.decode(row.labels[row.labels != IGNORE]) == wanted


@pytest.mark.parametrize("everything", [{"train_on": "all"}, {"completion_only_loss": False}, {}])
def test_what_an_answer_goes_on_from_is_learned_where_all_is(everything):
    """Of split conversations, too, in which each answer is a row."""
    said = [{"role": role, "content": words} for role, words in (("user", "a"), ("assistant", "b")) * 2]
    encoder = Encoder(tiny.tokenizer("llama"), "causal_lm", tiny.data_config(**everything))
    rows = encoder(Chat(said).split())
    assert [bool((row.labels != IGNORE).all()) for row in rows] == [bool(everything)] * 2
