"""A model folder's parameters, bytes, memory and speed, from a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, TorchAoConfig

from scaleup.evaluation.speed import Request, faster, measure, measure_apart, sizes
from scaleup.models.sources import materialize


def request(folder: str, task: str = "causal_lm", **changes: Any) -> Request:
    values = {"prompt_tokens": 8, "new_tokens": 4, "repeats": 2, "compile": False, "threads": 1, "device": "cpu"}
    return Request(folder=folder, task=task, **values | changes)


@pytest.fixture
def halved(tmp_path: Path) -> Path:
    """The tiny Llama with every other weight of its layers' matrices zero, in bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(materialize("builtin:tiny-llama"), dtype=torch.bfloat16)
    for name, weight in model.named_parameters():
        if "layers" in name and weight.ndim == 2:
            weight.data.view(-1)[::2] = 0
    model.save_pretrained(tmp_path / "halved")
    return tmp_path / "halved"


def test_sizes(halved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(halved, dtype="auto")
    found = sizes(model, halved)
    weights = dict(model.named_parameters())
    cut = sum(weight.numel() for name, weight in weights.items() if "layers" in name and weight.ndim == 2)
    assert found["num_parameters"] == sum(weight.numel() for weight in weights.values())
    tables = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    assert found["num_non_embedding_parameters"] == found["num_parameters"] - sum(table.numel() for table in tables)
    assert found["zeros"] == pytest.approx(cut / 2 / found["num_parameters"], abs=2e-3)
    assert found["bytes"] == (halved / "model.safetensors").stat().st_size
    assert found["bits_per_parameter"] == pytest.approx(16, abs=0.5)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("tiny-llama", "causal_lm"),
        ("tiny-gpt2", "causal_lm"),
        ("tiny-t5", "seq2seq_lm"),
        ("tiny-bert-classifier", "sequence_classification"),
    ],
)
def test_every_kind_of_model_is_timed(name: str, task: str) -> None:
    found = measure(request(materialize(f"builtin:{name}"), task))["eager"]
    assert found["prefill_ms"] > 0
    assert found["prefill_tokens_per_second"] == pytest.approx(8000 / found["prefill_ms"])
    assert ("decode_tokens_per_second" in found) == (task != "sequence_classification")
    assert found.get("latency_p50_ms", 0) <= found.get("latency_p95_ms", 0)


@pytest.mark.slow
def test_in_a_process_of_its_own(halved: Path) -> None:
    found = measure_apart(request(str(halved)))
    assert 0 < found["peak_memory_mib"] < 300, "without what the interpreter and its libraries have"
    assert found["eager"]["decode_tokens_per_second"] > 0
    with pytest.raises(RuntimeError, match="nowhere failed with exit code"):
        measure_apart(request("nowhere"))


def test_weights_in_8_bits_are_counted_as_weights(tmp_path: Path) -> None:
    """A matrix that torchao holds has as many weights as before, and zeros where they round to zero."""
    plain = AutoModelForCausalLM.from_pretrained(materialize("builtin:tiny-llama"))
    how = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    low = AutoModelForCausalLM.from_pretrained(materialize("builtin:tiny-llama"), quantization_config=how)
    low.save_pretrained(tmp_path)
    found = measure(request(str(tmp_path)))
    assert found["num_parameters"] == plain.num_parameters()
    assert found["bits_per_parameter"] < 24
    rounded = sum(int((weight.dequantize() == 0).sum()) for weight in low.model.layers.parameters() if weight.ndim == 2)
    assert found["zeros"] >= rounded / found["num_parameters"] > 0


def test_the_better_of_two_rounds() -> None:
    """Each speed by itself: a disturbed moment of one round is not the other's."""
    first = {"peak_memory_mib": 5.0, "bytes": 8, "eager": {"prefill_ms": 9.0, "decode_tokens_per_second": 20.0}}
    second = {"peak_memory_mib": 6.0, "bytes": 8, "eager": {"prefill_ms": 7.0, "decode_tokens_per_second": 10.0}}
    best = {"peak_memory_mib": 6.0, "bytes": 8, "eager": {"prefill_ms": 7.0, "decode_tokens_per_second": 20.0}}
    assert faster(first, second) == faster(second, first) == best
