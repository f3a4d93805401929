"""The loop makes the tokens that Transformers' own makes, on fewer rows, and reads the device once a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Lfm2Config, MistralConfig
from transformers.cache_utils import Cache, DynamicLayer

from scaleup.data.collate import has_padding, pad
from scaleup.models import decode
from scaleup.models.decode import ROOM, Decoder, GrowingLayer
from scaleup.models.gumbel import GumbelMax
from scaleup.models.padding import padding_known
from tests.host_reads import HostReads
from tests.unit.data import tiny

PROMPTS = [[40, 41, 42], [50], [60, 7, 61, 62, 90, 91], [70, 71], [33, 34, 35, 36], [80], [99, 12], [100, 45, 45]]
NEW = 24
SHAPE: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OTHERS = {
    "sliding window": lambda: MistralConfig(**SHAPE, sliding_window=6),
    "convolutions": lambda: Lfm2Config(**SHAPE, layer_types=["conv", "full_attention", "conv"]),
}


def sharp(name: str) -> Any:
    """A model whose answers depend on the prompt, and do not hang on rounding."""
    torch.manual_seed(0)
    if name in OTHERS:
        return AutoModelForCausalLM.from_config(OTHERS[name]()).eval()
    model = tiny.model(name).eval()
    outer = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim > 1 and id(weight) not in outer and "embed" not in key:
                weight.mul_(10)
    return model


def inputs_of(model: Any, prompts: list[list[int]] = PROMPTS) -> dict[str, Any]:
    ids, mask = pad(prompts, 0, left=not model.config.is_encoder_decoder)
    return {"input_ids": ids, "attention_mask": mask, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}


def some_ends(model: Any, prompts: list[list[int]] = PROMPTS) -> list[int]:
    """Tokens that end the rows at different steps."""
    settings = inputs_of(model, prompts)
    model.generation_config.eos_token_id = None
    whole = model.generate(**settings)[:, -NEW:]
    ends = {int(whole[row, 1 + 3 * row // 2]) for row in range(len(prompts) - 2)}
    return sorted(ends - {0})


@contextmanager
def rows_of_steps(model: Any) -> Iterator[list[int]]:
    """How many rows each forward pass computes."""
    seen: list[int] = []
    handle = model.register_forward_hook(lambda module, given, output: seen.append(len(output.logits)))
    yield seen
    handle.remove()


NAMES = ["llama", "qwen2", "gpt2", "t5", "bart", *OTHERS]


@pytest.mark.parametrize("name", NAMES)
def test_greedy_is_that_of_transformers(name: str) -> None:
    model = sharp(name)
    settings = {**inputs_of(model), "eos_token_id": some_ends(model)}
    expected = model.generate(**settings)
    with rows_of_steps(model) as rows:
        found = model.generate(**settings, custom_generate=Decoder())
    assert torch.equal(found, expected)
    assert rows == sorted(rows, reverse=True)
    if name == "convolutions":
        assert set(rows) == {len(PROMPTS)}, "its cache selects no rows"
    else:
        assert rows[0] == len(PROMPTS) > 2 * rows[-1]


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize(
    "own",
    [
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"min_new_tokens": 9, "suppress_tokens": [40, 45], "bad_words_ids": [[50, 51], [60]]},
        {"forced_bos_token_id": 77, "forced_eos_token_id": 78},
        {"use_cache": False},
        {"encoder_repetition_penalty": 2.0},
        {"cache_implementation": "static"},
    ],
    ids=lambda own: next(iter(own)),
)
def test_a_models_own_settings_are_kept(name: str, own: dict[str, Any]) -> None:
    model = sharp(name)
    settings = {**inputs_of(model), "eos_token_id": some_ends(model)}
    plain = model.generate(**settings)
    for key, value in own.items():
        setattr(model.generation_config, key, value)
    expected = model.generate(**settings)
    assert torch.equal(model.generate(**settings, custom_generate=Decoder()), expected)
    if not {"use_cache", "cache_implementation"} & own.keys():
        assert not torch.equal(plain, expected), "they matter"


def test_rows_have_limits_of_their_own() -> None:
    model = sharp("llama")
    settings = inputs_of(model)
    model.generation_config.eos_token_id = None
    whole = model.generate(**settings)[:, -NEW:]
    limits = torch.tensor([1, 3, 24, 5, 8, 2, 11, 3])
    with rows_of_steps(model) as rows:
        found = model.generate(**settings, custom_generate=Decoder(limits=limits))[:, -NEW:]
    beyond = torch.arange(NEW) >= limits[:, None]
    assert torch.equal(found, whole.masked_fill(beyond, 0))
    assert rows == [8] * 3 + [4] * 2 + [4] * 3 + [2] * 3 + [1] * 13


def test_who_draws_is_told_which_rows_are_left() -> None:
    model = sharp("llama")
    settings = {**inputs_of(model), "eos_token_id": some_ends(model)}
    draw = GumbelMax.seeded([(1, row) for row in range(len(PROMPTS))], torch.device("cpu"), 0.5)
    whole = model.generate(**settings, custom_generate=Decoder(draw))
    for row in range(len(PROMPTS)):
        alone = GumbelMax(draw.seeds[row : row + 1], 0.5)
        single = {**settings, **inputs_of(model, [PROMPTS[row]])}
        found = model.generate(**single, custom_generate=Decoder(alone))[0, len(PROMPTS[row]) :]
        assert whole[row, 6 : 6 + len(found)].tolist() == found.tolist()


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "t5"])
@pytest.mark.parametrize("drawn", [False, True])
def test_the_host_reads_the_device_once_a_token(name: str, drawn: bool) -> None:
    """Whether rows leave or not. What Transformers would read, whether the batch is padded, the host knew. GPT-2 looks
    for the pad token itself."""
    model = sharp(name)
    draw = GumbelMax.seeded([(1, row) for row in range(len(PROMPTS))], torch.device("cpu"))
    choose = draw if drawn else decode.likeliest
    leaving = Decoder(choose, torch.tensor([30, 2, 20, 9, 30, 4, 30, 14]))

    def reads(count: int, loop: Decoder, prompts: list[list[int]]) -> int:
        settings = {**inputs_of(model, prompts), "max_new_tokens": count, "eos_token_id": 3}
        with HostReads() as found, padding_known(has_padding(settings["attention_mask"])):
            model.generate(**settings, custom_generate=loop)
        return found.count

    for loop, prompts in ((leaving, PROMPTS), (Decoder(choose), PROMPTS), (Decoder(choose), [[40, 41]] * 8)):
        most = 16 * (2 if name == "gpt2" else 1)
        assert reads(20, loop, prompts) - reads(4, loop, prompts) <= most


def test_what_cannot_lose_rows_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of a class that is not known, or an argument whose rows are not."""
    model = sharp("llama")
    settings = {**inputs_of(model), "eos_token_id": some_ends(model)}

    class Own(Cache):
        pass

    with rows_of_steps(model) as rows:
        model.generate(**settings, custom_generate=Decoder())
        dropped = rows[-1]
        rows.clear()
        model.generate(
            **settings, past_key_values=Own(layer_class_to_replicate=DynamicLayer), custom_generate=Decoder()
        )
    assert dropped < rows[-1] == len(PROMPTS)


def test_a_cache_grows_in_place() -> None:
    """Its memory is new once in ROOM tokens, and where rows have left; what it holds is what it was given."""
    layer, given, memories = GrowingLayer(), [], [0]
    for step in range(3 * ROOM):
        if step == ROOM // 2:
            layer.batch_select_indices(torch.tensor([0, 2]))
            given = [part[[0, 2]] for part in given]
        new = torch.randn(2 if given and len(given[0]) == 2 else 3, 4, 5 if step == 0 else 1, 8)
        given.append(new)
        keys, values = layer.update(new, -new)
        if keys.data_ptr() != memories[-1]:
            memories.append(keys.data_ptr())
        assert torch.equal(keys, torch.cat(given, dim=-2))
        assert torch.equal(values, -keys)
    assert len(memories[1:]) == 4


def test_the_models_caches_grow_in_place() -> None:
    for name in ("llama", "t5"):
        model, caches = sharp(name), []
        hook = model.register_forward_hook(lambda module, inputs, output: caches.append(output.past_key_values))  # noqa: B023
        with torch.no_grad():
            model.generate(**inputs_of(model), custom_generate=Decoder())
        hook.remove()
        of_decoder = getattr(caches[-1], "self_attention_cache", caches[-1])
        assert {type(layer) for layer in of_decoder.layers} == {GrowingLayer}
