"""Answers are those of Transformers' own `generate` with the same settings, to one prompt at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scaleup.config.schema import GenerationConfig
from scaleup.data.tokenization import Encoder
from scaleup.models.generation import Generator
from tests.unit.data import tiny

TEXTS = ["a", "Review: a rather long one about a film.\nSentiment:", "one two", "?", "Translate to German: the house"]
SETTINGS: dict[str, dict[str, Any]] = {
    "penalty": {"repetition_penalty": 1.4},
    "n-grams": {"no_repeat_ngram_size": 2},
    "least": {"min_new_tokens": 16},
    "beams": {"num_beams": 3},
    "long beams": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "num_return_sequences": 2},
    "beams without repetition": {"num_beams": 2, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
}


def sharp(name: str) -> Any:
    """Of larger weights between embedding and head, so that answers depend on the prompt, and not on rounding."""
    model = tiny.model(name).eval()
    outer = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim > 1 and id(weight) not in outer and "embed" not in key:
                weight.mul_(10)
    return model


def theirs(model: Any, tokens: Any, ids: list[int], **settings: Any) -> list[str]:
    prompt = torch.tensor([ids])
    output = model.generate(prompt, max_new_tokens=16, do_sample=False, pad_token_id=tokens.pad_token_id, **settings)
    skip = 1 if model.config.is_encoder_decoder else len(ids)
    return list(tokens.batch_decode(output[:, skip:], skip_special_tokens=True))


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_as_transformers_answers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runtime = tiny.single_process(tmp_path)
    model, tokenizer = sharp(name), tiny.tokenizer(name)
    prompts = Encoder(tokenizer, tiny.facts(name).task, tiny.data_config()).prompt_ids(TEXTS)
    plain = [theirs(model, tokenizer, prompt) for prompt in prompts]

    def ours(**settings: Any) -> list[list[str]]:
        config = GenerationConfig(max_new_tokens=16, **settings)
        return Generator(runtime, model, tokenizer, config, 3, tmp_path / ".parts").sequences(prompts, "answering")

    assert ours() == plain
    for kind, settings in SETTINGS.items():
        expected = [theirs(model, tokenizer, prompt, **settings) for prompt in prompts]
        assert ours(**settings) == expected, kind
        assert expected != plain or kind == "least", "the settings matter"

    stop = [plain[1][0][4:6], plain[3][0][2:4], "never there"]
    cut = [[before(text, stop) for text in texts] for texts in plain]
    assert ours(stop=stop) == cut != plain
    for prompt, (ended,) in zip(prompts, cut, strict=True):
        [stopped] = theirs(model, tokenizer, prompt, stop_strings=stop, tokenizer=tokenizer)
        assert before(stopped, stop) == ended


def before(text: str, stop: list[str]) -> str:
    for each in stop:
        text = text.partition(each)[0]
    return text
