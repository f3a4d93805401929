"""What ends an answer in training ends it in generation: here, in PPO, and where others read the model's files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig as TheirConfig

from scaleup.config.adapters import LoraAdapter
from scaleup.config.schema import GenerationConfig
from scaleup.models.adapters import adapt, save_adapter
from scaleup.models.generation import Generator, answer_ends, answer_texts, save_tokenizer
from scaleup.models.rollout import sampling_of
from tests.unit.data import tiny

TEXT_END, TURN_END = 0, 2
"""<|endoftext|> and <|im_end|>, which ends a turn in the built-in template."""
ENDLESS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
NEVER_USED = {"one": ENDLESS, "other": ENDLESS}


def base() -> Any:
    """The tokenizer of a base model: its eos is another token than the one that ends a turn."""
    tokenizer = tiny.tokenizer("llama")
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


def declaring(*ends: int) -> Any:
    """A model whose own generation config ends at these tokens."""
    return SimpleNamespace(generation_config=TheirConfig(eos_token_id=list(ends) or None))


@pytest.mark.parametrize(
    ("template", "model", "ends"),
    [
        ("its own", None, [TEXT_END, TURN_END]),
        ("its own", declaring(), [TEXT_END, TURN_END]),
        ("its own", declaring(7, TURN_END), [TEXT_END, TURN_END, 7]),
        ("its own", SimpleNamespace(generation_config=None), [TEXT_END, TURN_END]),
        (None, declaring(7), [TEXT_END, 7]),
        (ENDLESS, None, [TEXT_END]),
        (NEVER_USED, None, [TEXT_END]),
        ("{{ raise_exception('never') }}", None, [TEXT_END]),
    ],
)
def test_what_ends_an_answer(template: Any, model: Any, ends: list[int]) -> None:
    tokenizer = base()
    if template != "its own":
        tokenizer.chat_template = template
    assert answer_ends(tokenizer, model) == ends
    sampling = sampling_of(model, tokenizer, 8, 1.0)
    assert sorted(sampling.eos_ids) == ends


@pytest.mark.parametrize(
    ("own", "saved"),
    [
        ({"eos_token_id": 0}, [0, 2]),
        ({"eos_token_id": [7, 0]}, [0, 2, 7]),
        ({"eos_token_id": None, "temperature": 0.5}, [0, 2]),
        ({"eos_token_id": 0, "_from_model_config": True}, [0, 2]),
        ({}, [0, 2]),
    ],
)
def test_the_ends_are_saved_with_the_model(tmp_path: Path, own: dict[str, Any], saved: list[int]) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    save_tokenizer(base(), tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written == {**{key: own[key] for key in own if key[0] != "_"}, "eos_token_id": saved}
    assert TheirConfig.from_pretrained(tmp_path).eos_token_id == saved
    assert (tmp_path / "tokenizer_config.json").is_file()


def test_a_single_end_is_a_number(tmp_path: Path) -> None:
    """As most models' files have it."""
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    save_tokenizer(tiny.tokenizer("llama"), tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": 2}


@pytest.mark.parametrize("name", ["llama", "bert-classifier"])
def test_an_adapters_folder_gets_them_too(tmp_path: Path, name: str) -> None:
    """With what else its base declares, which may be a hub's name. Models that do not generate get none."""
    own = tiny.model(name)
    if name == "llama":
        own.generation_config = TheirConfig(eos_token_id=7, repetition_penalty=1.1)
    task = tiny.facts(name).task
    adapted = adapt(own, LoraAdapter(type="lora", target_modules="all-linear"), task, "owner/name")
    save_adapter(adapted, tmp_path, {key: each for key, each in adapted.named_parameters() if each.requires_grad})
    save_tokenizer(base() if name == "llama" else tiny.tokenizer(name), tmp_path)
    file = tmp_path / "generation_config.json"
    assert file.is_file() is (name == "llama")
    if name == "llama":
        saved = TheirConfig.from_pretrained(tmp_path)
        assert (saved.eos_token_id, saved.repetition_penalty) == ([0, 2, 7], 1.1)


class Says:
    """A model that goes on as scripted, whatever it is told of ends."""

    def __init__(self, *answer: int) -> None:
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.generation_config = TheirConfig(eos_token_id=7)
        self.answer, self.told = torch.tensor([answer]), {}

    def generate(self, input_ids: torch.Tensor, **settings: Any) -> torch.Tensor:
        self.told = settings
        return torch.cat([input_ids, self.answer], dim=1)


def test_generation_stops_there(runtime: Any, run: Any) -> None:
    tokenizer = base()
    a, b = tokenizer("ab")["input_ids"]
    for end in (TEXT_END, TURN_END, 7):
        model = Says(a, end, b, b)
        generator = Generator(runtime, model, tokenizer, GenerationConfig(), 1, run.path / ".parts")
        assert generator.answers([[b]], "answering") == ["a"]
        assert model.told["eos_token_id"] == [TEXT_END, TURN_END, 7]


def test_an_encoder_decoders_answer_stands_alone() -> None:
    tokenizer = tiny.tokenizer("t5")
    ids = tokenizer("a b")["input_ids"]
    assert answer_texts(tokenizer, None, [[*ids, *ids]], answer_ends(tokenizer)) == ["a b"]
