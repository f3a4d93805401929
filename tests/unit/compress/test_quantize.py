"""A quantized folder is torchao's own result, without pickles, and Transformers reads the same model out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, PerGroup, quantize_
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from scaleup.compress.probes import drawn_probes, logits_on
from scaleup.compress.quantize import chosen_matrices, load_quantized, read_quantized, write_quantized
from scaleup.config.stages.quantize import QuantizeConfig
from scaleup.describe.model import model_facts
from scaleup.errors import ScaleupError
from scaleup.models.load import load_tokenizer

CPU = torch.device("cpu")
METHODS: dict[str, tuple[dict[str, Any], Any]] = {
    "rows": ({"method": "int8_weight_only"}, Int8WeightOnlyConfig()),
    "groups": ({"method": "int8_weight_only", "group_size": 32}, Int8WeightOnlyConfig(granularity=PerGroup(32))),
    "dynamic": ({"method": "int8_dynamic"}, Int8DynamicActivationInt8WeightConfig()),
    "bfloat16": ({"method": "bfloat16"}, None),
}


def config_of(path: str, **settings: Any) -> QuantizeConfig:
    raw = {"stage": "quantize", "name": "x", "model": {"path": path}, "quantize": settings}
    return QuantizeConfig.model_validate(raw)


def written(config: QuantizeConfig, folder: Path) -> float:
    """What the stage does, without rows: how far reading it again moves logits."""
    facts = model_facts(config.model)
    choice = None if config.quantize.method == "bfloat16" else chosen_matrices(config.model, config.quantize)
    model = load_quantized(config, facts, choice, CPU)
    probes = drawn_probes(facts)
    found = logits_on(model, probes, CPU)
    write_quantized(model, load_tokenizer(config.model, facts.location), config.quantize, folder)
    return read_quantized(config, facts, folder, probes, found, CPU)[1]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 69).view(2, 32)
    more = {"decoder_input_ids": ids[:, 7:19]} if model.config.is_encoder_decoder else {}
    return model.eval()(input_ids=ids, **more).logits.float()


@pytest.mark.parametrize("name", ["rows", "groups", "bfloat16"])
def test_a_large_model_is_several_files(name: str, tmp_path: Path) -> None:
    settings, _ = METHODS[name]
    assert written(config_of("builtin:tiny-llama", max_shard_size="50KB", **settings), tmp_path) == 0
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(places.values())) == len(list(tmp_path.glob("model-*.safetensors"))) > 2


@pytest.mark.parametrize("name", METHODS)
def test_the_folder_holds_what_torchao_makes(name: str, tmp_path: Path) -> None:
    settings, how = METHODS[name]
    assert written(config_of("builtin:tiny-llama", **settings), tmp_path) == 0
    plain = AutoModelForCausalLM.from_pretrained(
        model_facts(config_of("builtin:tiny-llama", **settings).model).location
    )
    again = logits(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    true = logits(plain)
    if how is None:
        for parameter in plain.parameters():  # not what the model computes for itself
            parameter.data = parameter.data.to(torch.bfloat16).float()
    else:
        quantize_(plain.model, how)  # all but the head
    by_hand = logits(plain)
    assert not torch.equal(by_hand, true), "quantizing moves something"
    assert torch.allclose(again, by_hand, atol=1e-6)
    files = {file.suffix for file in tmp_path.iterdir()}
    assert files <= {".safetensors", ".json", ".jinja"}, "nothing is pickled"
    weights = load_file(tmp_path / "model.safetensors")
    stored = torch.bfloat16 if how is None else torch.float32
    assert weights["lm_head.weight"].dtype == stored
    if how is not None:
        assert weights["model.layers.0.mlp.up_proj._weight_qdata"].dtype == torch.int8


def test_patterns_leave_modules(tmp_path: Path) -> None:
    config = config_of("builtin:tiny-llama", method="int8_weight_only", skip=["*.down_proj", "model.layers.1"])
    choice = chosen_matrices(config.model, config.quantize)
    assert "model.layers.0.mlp.down_proj" in choice.left and "model.layers.1.mlp.up_proj" in choice.left
    assert "lm_head" in choice.quantized, "a head that shares nothing is quantized if it is not among the patterns"
    assert written(config, tmp_path) == 0
    weights = load_file(tmp_path / "model.safetensors")
    whole = {
        name.removesuffix(".weight") for name, weight in weights.items() if weight.dim() == 2 and "_weight_" not in name
    }
    assert whole == {*choice.left, "model.embed_tokens"}


def test_a_shared_head_is_left_whatever_the_patterns_say(tmp_path: Path) -> None:
    config = config_of("builtin:tiny-qwen2", method="int8_weight_only", skip=["*.down_proj"])
    assert "lm_head" in chosen_matrices(config.model, config.quantize).left
    assert written(config, tmp_path) == 0


def test_an_encoder_decoder(tmp_path: Path) -> None:
    assert written(config_of("builtin:tiny-t5", method="int8_weight_only"), tmp_path) <= 1e-5
    assert torch.isfinite(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path))).all()
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert any(name.endswith(".wo") for name in settings["modules_to_not_convert"]), "T5 keeps these in float32"


@pytest.mark.parametrize(
    ("path", "settings", "told"),
    [
        ("tiny-llama", {"skip": ["*.fc1"]}, "quantize.skip: '*.fc1' matches no module of LlamaForCausalLM"),
        ("tiny-llama", {"skip": ["model*", "lm_head"]}, "quantize.skip: leaves nothing"),
        ("tiny-llama", {"group_size": 48}, "quantize.group_size: 48 does not divide the 64 inputs of model.layers.0."),
        ("tiny-gpt2", {}, "quantize.method: leaves nothing: GPT2LMHeadModel has 1 matrices"),
    ],
)
def test_what_cannot_be_quantized(path: str, settings: dict[str, Any], told: str) -> None:
    config = config_of(f"builtin:{path}", method="int8_weight_only", **settings)
    with pytest.raises(ScaleupError) as caught:
        chosen_matrices(config.model, config.quantize)
    assert told in str(caught.value)
