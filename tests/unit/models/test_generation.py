"""Answers generated in batches are those generated alone."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

from scaleup.config.schema import GenerationConfig
from scaleup.data.tokenization import Encoder
from scaleup.models.adapters import TASK_TYPES
from scaleup.models.generation import Generator
from tests.unit.data import tiny

TEXTS = ["a", "Review: a rather long one about a film.\nSentiment:", "one two", "?", "Translate to German: the house"]


def prompts(name):
    return Encoder(tiny.tokenizer(name), tiny.facts(name).task, tiny.data_config()).prompt_ids(TEXTS)


def sharp(name):
    """With larger weights between embedding and head the answers depend on the prompt, and do not hang on rounding."""
    model = tiny.model(name).eval()
    outer = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim > 1 and id(weight) not in outer and "embed" not in key:
                weight.mul_(10)
    return model


def generator(runtime, run, model, tokenizer, batch_size, **settings):
    config = GenerationConfig(**{"max_new_tokens": 12, **settings})
    return Generator(runtime, model, tokenizer, config, batch_size, run.path / ".parts")


def answers(runtime, run, model, tokenizer, ids, batch_size, **settings):
    return generator(runtime, run, model, tokenizer, batch_size, **settings).answers(ids, "answering")


def by_hand(model, tokenizer, ids):
    """Greedy, one prompt, no padding, no cache, by the logits."""
    encoder = model.config.is_encoder_decoder
    tokens = [model.config.decoder_start_token_id] if encoder else list(ids)
    start = len(tokens)
    for _ in range(12):
        inputs = {"input_ids": torch.tensor([ids]), "decoder_input_ids": torch.tensor([tokens])}
        inputs = inputs if encoder else {"input_ids": torch.tensor([tokens])}
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        last = len(tokens) - start == 11 and model.generation_config.forced_eos_token_id is not None
        tokens.append(tokenizer.eos_token_id if last else int(logits.argmax()))
        if tokens[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(tokens[start:], skip_special_tokens=True)


@pytest.mark.parametrize("pad_is_eos", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
def test_batched_answers_are_those_one_by_one(runtime, run, name, pad_is_eos):
    model, tokenizer, ids = sharp(name), tiny.tokenizer(name, pad_is_eos), prompts(name)
    expected = [by_hand(model, tokenizer, prompt) for prompt in ids]
    assert len(set(expected)) > 2, "the answers differ"
    assert answers(runtime, run, model, tokenizer, ids, 1) == expected
    assert answers(runtime, run, model, tokenizer, ids, 2) == expected
    assert answers(runtime, run, model, tokenizer, ids, 8) == expected
    assert not (run.path / ".parts").exists()


@pytest.mark.parametrize("torn", ["", '[3, ["half a l'])
def test_a_run_that_goes_on_asks_only_for_what_is_missing(runtime, run, torn):
    """Two of three batches were answered; the last line may be cut off."""
    model, tokenizer, ids = sharp("llama"), tiny.tokenizer("llama"), prompts("llama")[:5]
    counts, stop = [0], None

    def counted(*_):
        counts.append(0)
        if len(counts) == stop:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(counted)
    expected = answers(runtime, run, model, tokenizer, ids, 2)
    stop = len(counts)  # the last token of the last batch
    counts.clear()
    first = replace(generator(runtime, run, model, tokenizer, 2), keeps=True)
    with pytest.raises(KeyboardInterrupt):
        counts.append(0)
        first.answers(ids, "answering")
    [file] = (run.path / ".parts").glob("*/0.jsonl")
    assert file.read_text().count("\n") == 4
    file.write_text(file.read_text() + torn)
    counts.clear()
    assert first.answers(ids, "answering") == expected
    assert 0 < len(counts) <= 12, "one batch"
    counts.clear()
    assert first.answers(ids, "answering") == expected and counts == []
    assert len(first.answers(ids[:1] * 2, "answering")) == 2 and counts, "other prompts are asked anew"


SOFT = {"prompt_tuning": PromptTuningConfig, "prefix": PrefixTuningConfig}


@pytest.mark.parametrize("kind", SOFT)
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
def test_a_soft_prompt_stands_right_before_each_prompt(runtime, run, name, kind):
    """Whatever padding there is beside longer prompts."""
    torch.manual_seed(0)
    settings = SOFT[kind](task_type=TASK_TYPES[tiny.facts(name).task], num_virtual_tokens=5)
    plain = sharp(name)
    without = [by_hand(plain, tiny.tokenizer(name), prompt) for prompt in prompts(name)]
    model, tokenizer, ids = get_peft_model(plain, settings).eval(), tiny.tokenizer(name), prompts(name)
    expected = [by_hand(model, tokenizer, prompt) for prompt in ids]
    assert expected != without
    assert len(set(expected)) > 2, "the answers differ"
    for batch_size in (1, 2, 8):
        assert answers(runtime, run, model, tokenizer, ids, batch_size) == expected
    assert answers(runtime, run, model, tokenizer, ids, 8, num_beams=3) == answers(
        runtime, run, model, tokenizer, ids, 1, num_beams=3
    )


class Echo:
    """Says which prompts came with which mask, and answers with the last token of each."""

    def __init__(self, is_encoder_decoder):
        self.config = SimpleNamespace(is_encoder_decoder=is_encoder_decoder)
        self.generation_config = None
        self.asked = []

    def generate(self, input_ids, attention_mask, **settings):
        self.asked.append((input_ids.tolist(), attention_mask.tolist(), settings))
        if self.config.is_encoder_decoder:
            return input_ids[:, :1]
        return torch.cat([input_ids, input_ids[:, -1:]], dim=1)


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_padding(runtime, run, pad_is_eos):
    """Causal prompts on the left, encoder inputs on the right, masks by position; the shortest come together."""
    tokenizer = tiny.tokenizer("llama", pad_is_eos)
    pad = tokenizer.pad_token_id
    ids = [[40, 41, 42], [50], [60, pad]]
    causal, encoder = Echo(False), Echo(True)
    assert answers(runtime, run, causal, tokenizer, ids, 3) == [
        tokenizer.decode([42]),
        tokenizer.decode([50]),
        "",
    ]
    assert causal.asked[0][:2] == ([[pad, pad, 50], [pad, 60, pad], [40, 41, 42]], [[0, 0, 1], [0, 1, 1], [1, 1, 1]])
    answers(runtime, run, encoder, tokenizer, ids, 2)
    assert [asked[:2] for asked in encoder.asked] == [
        ([[50, pad], [60, pad]], [[1, 0], [1, 1]]),
        ([[40, 41, 42]], [[1, 1, 1]]),
    ]
    assert causal.asked[0][2]["pad_token_id"] == pad


def test_sampling_follows_the_seed_and_the_temperature(runtime, run):
    model, tokenizer, ids = sharp("llama"), tiny.tokenizer("llama"), prompts("llama")

    def sampled(seed, size=8, **settings):
        return answers(runtime, run, model, tokenizer, ids, size, seed=seed, **settings)

    assert sampled(0, temperature=1.0) == sampled(0, temperature=1.0) != sampled(1, temperature=1.0)
    assert sampled(0, temperature=1.0) == sampled(0, 2, temperature=1.0), "however the rows are batched"
    assert sampled(0) == sampled(1), "greedy by default"
    assert sampled(0, temperature=1e-5) == sampled(0) != sampled(0, temperature=1.0)
    assert sampled(0, temperature=1.0, top_p=1e-6) == sampled(0), "only the likeliest token is left"


def test_beams_find_answers_at_least_as_likely(runtime, run):
    model, tokenizer, ids = sharp("llama"), tiny.tokenizer("llama"), prompts("llama")
    assert answers(runtime, run, model, tokenizer, ids, 8, num_beams=4) != answers(
        runtime, run, model, tokenizer, ids, 8
    )


def test_no_prompts(runtime, run):
    assert answers(runtime, run, Echo(False), tiny.tokenizer("llama"), [], 4) == []


def test_a_prompt_leaves_room_for_the_answer(runtime, run):
    """Of a prompt too long for the model's positions, the end is kept, and it is counted."""
    model = Echo(False)
    model.config.max_position_embeddings = 6
    asks = generator(runtime, run, model, tiny.tokenizer("llama"), 1, max_new_tokens=3)
    encoder = Encoder(tiny.tokenizer("llama"), "causal_lm", tiny.data_config())
    [whole], [cut] = encoder.prompt_ids(["abcdefgh"]), encoder.prompt_ids(["abcdefgh"], asks.most_tokens)
    assert len(cut) == asks.most_tokens == 3
    assert cut[-2:] == whole[-2:]
    assert encoder.truncated == {"prompts": 1}


def test_several_answers_a_prompt(runtime, run):
    """The first draw is what one answer alone is; however they are batched; of beams the best come first."""
    model, tokenizer, ids = sharp("llama"), tiny.tokenizer("llama"), prompts("llama")

    def several(size, **settings):
        return generator(runtime, run, model, tokenizer, size, **settings).sequences(ids, "answering")

    drawn = several(8, temperature=1.0, num_return_sequences=3)
    assert drawn == several(1, temperature=1.0, num_return_sequences=3)
    assert [texts[0] for texts in drawn] == answers(runtime, run, model, tokenizer, ids, 8, temperature=1.0)
    assert all(len(set(texts)) == 3 for texts in drawn)
    found = several(8, num_beams=3, num_return_sequences=2)
    assert [texts[0] for texts in found] == answers(runtime, run, model, tokenizer, ids, 8, num_beams=3)
    assert all(len(texts) == 2 for texts in found) and any(len(set(texts)) == 2 for texts in found)


def test_draws_from_few_tokens(runtime, run):
    model, tokenizer, ids = sharp("llama"), tiny.tokenizer("llama"), prompts("llama")

    def drawn(**settings):
        return answers(runtime, run, model, tokenizer, ids, 8, **settings)

    greedy, free = drawn(), drawn(temperature=3.0)
    assert drawn(temperature=3.0, top_k=1) == drawn(temperature=3.0, min_p=1.0) == greedy != free
    assert free != drawn(temperature=3.0, typical_p=0.2) != greedy


def test_a_stop_that_begins_in_the_prompt_ends_no_answer(runtime, run):
    """It is looked for in the answer alone, and rows that go on do so as they would."""
    model, tokenizer = sharp("gpt2"), tiny.tokenizer("gpt2")
    [whole, other] = answers(runtime, run, model, tokenizer, ids := prompts("gpt2")[:2], 2)
    asked = tokenizer.decode(ids[0])[-1] + whole[0]
    assert asked not in whole
    assert answers(runtime, run, model, tokenizer, ids, 2, stop=[asked, "no such text"])[0] == whole
    stop = whole[3:5]
    found = answers(runtime, run, model, tokenizer, ids, 2, stop=[stop])
    assert found == [whole[: whole.index(stop)], other.partition(stop)[0]]
