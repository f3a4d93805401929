"""What a micro-batch needs beside the weights: traced without storage, against the same pass on real tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    T5Config,
)

from benchmarks.memory.storages import Peak
from scaleup.config.adapters import AdapterConfig
from scaleup.config.stages.distill import DistillSettings
from scaleup.data.collate import Batch
from scaleup.describe import answer
from scaleup.describe.footprint import Timeline, footprint, trace
from scaleup.distill.classifiers import ClassifierDistillation
from scaleup.models.adapted import make_trainable
from scaleup.models.adapters import adapt
from scaleup.models.load import enable_gradient_checkpointing, load_model
from scaleup.plan.facts import Arithmetic, Footprint, MicroBatch, ModelFacts, ModelRequest
from scaleup.train.head_loss import fuse_head
from scaleup.train.losses import token_loss_sum
from scaleup.train.preference import preference_loss
from scaleup.train.step import Objective
from tests.classifier import sharp_classifier_like

ROWS, LENGTH = 3, 40
BATCH = MicroBatch(rows=ROWS, max_length=LENGTH)
LLAMA = LlamaConfig(
    vocab_size=301, hidden_size=48, intermediate_size=97, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
)  # fmt: skip
EAGER = LlamaConfig(**{**LLAMA.to_dict(), "attn_implementation": "eager"})
GPT2 = GPT2Config(vocab_size=301, n_embd=48, n_layer=2, n_head=4, n_positions=64)
T5 = T5Config(vocab_size=301, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0)


ADAPTERS: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 8},
    "prefix": {"type": "prefix", "num_virtual_tokens": 8},
    "adalora": {"type": "adalora", "init_r": 4, "target_r": 2, "target_modules": "all-linear"},
}


def model_of(config: PreTrainedConfig, device: str, checkpointing: bool, kind: str = "", **options: bool) -> Any:
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device(device):
        model = auto.from_config(config)
        model.tie_weights()
        if checkpointing:
            enable_gradient_checkpointing(model, **options)
        if kind:
            task = "seq2seq_lm" if config.is_encoder_decoder else "causal_lm"
            model = adapt(model, TypeAdapter(AdapterConfig).validate_python(ADAPTERS[kind]), task)
    return model


def traced(
    config: PreTrainedConfig, arithmetic: Arithmetic = "float32", checkpointing: bool = False, kind: str = ""
) -> Timeline:
    model = model_of(config, "meta", checkpointing, kind, preserve_rng_state=False)
    return trace(model, BATCH, "seq2seq_lm" if config.is_encoder_decoder else "causal_lm", arithmetic)


def measured(config: PreTrainedConfig, low: bool, checkpointing: bool, kind: str = "") -> tuple[int, int]:
    """The most without parameters and gradients, and gradients, of a pass on the CPU. One token is padding, else no
    mask would be made."""
    model = model_of(config, "cpu", checkpointing, kind).train()
    fuse_head(model)
    model.to(torch.bfloat16 if low else torch.float32)
    ids = torch.randint(3, 300, (ROWS, LENGTH))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.clone()
    batch = Batch(inputs, ids.clone(), ids.numel(), ids.numel())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # there from the start, as DDP's buckets: so they add nothing
        parameter.grad = torch.zeros_like(parameter)
    start = [*model.parameters(), *model.buffers(), *(parameter.grad for parameter in trained)]
    held = sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in start}.values())
    with Peak([*start, *inputs.values(), batch.labels]) as peak:
        token_loss_sum(model, batch).backward()
    return peak.bytes - held, sum(parameter.nbytes for parameter in trained)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("arithmetic", ["float32", "low"])
@pytest.mark.parametrize("config", [LLAMA, EAGER, GPT2, T5], ids=["llama", "eager", "gpt2", "t5"])
def test_is_what_a_real_pass_takes(config: PreTrainedConfig, arithmetic: Arithmetic, checkpointing: bool) -> None:
    """To 2 %: a few vectors of indices are made for labels on real tensors, and where a gradient is added to one
    that is there the trace has none yet."""
    found = footprint(arithmetic, traced(config, arithmetic, checkpointing))
    most, gradients = measured(config, arithmetic == "low", checkpointing)
    assert found.most(0.0) == pytest.approx(most, rel=0.02)
    assert found.moments[-1][1] == gradients


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("config", [LLAMA, GPT2, T5], ids=lambda config: config.model_type)
def test_adapters_are_traced_too(config: PreTrainedConfig, kind: str) -> None:
    """An upper bound: virtual tokens are taken to have labels."""
    found = footprint("float32", traced(config, kind=kind))
    most, gradients = measured(config, False, False, kind)
    assert most <= found.most(0.0) <= 1.1 * most
    assert found.moments[-1][1] == gradients


def test_autocast_keeps_copies_of_the_weights() -> None:
    plain, low, auto = (traced(LLAMA, kind).forward for kind in ("float32", "low", "autocast"))
    assert low < auto < plain + 2 * sum(p.numel() for p in model_of(LLAMA, "meta", False).parameters())


def test_frozen_parameters_need_no_gradients() -> None:
    model = model_of(LLAMA, "meta", False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    found = trace(model, BATCH, "causal_lm", "float32")
    assert found.moments[-1][1] == 4 * 5 * 48


class TestFewLayersStandForMany:
    @pytest.mark.parametrize("checkpointing", [False, True])
    @pytest.mark.parametrize("arithmetic", ["float32", "autocast"])
    @pytest.mark.parametrize("kind", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
    def test_as_the_whole(
        self, kind: str, arithmetic: Arithmetic, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = {"llama": LLAMA, "gpt2": GPT2}[kind].to_dict() | {"num_hidden_layers": 9, "n_layer": 9}
        (tmp_path / "config.json").write_text(json.dumps(config))
        batch = MicroBatch(
            rows=ROWS, max_length=LENGTH, gradient_checkpointing=checkpointing, arithmetics=(arithmetic,)
        )
        model = ModelRequest(path=str(tmp_path), tokenizer="builtin:tiny-llama")
        few = answer.describe(model, batch).footprint(arithmetic)
        monkeypatch.setattr(answer, "FEW_LAYERS", 9)
        whole = answer.describe(model, batch).footprint(arithmetic)
        assert few is not None and whole is not None
        assert (few.forward, few.logits) == (whole.forward, whole.logits)
        for share in (0.0, 0.25, 0.5, 1.0):
            assert few.most(share) == pytest.approx(whole.most(share), rel=1e-3)


def test_an_architecture_that_needs_values_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*arguments: Any) -> Footprint:
        raise RuntimeError("no values here")

    monkeypatch.setattr(answer, "footprint_of", breaks)
    facts = answer.describe(ModelRequest(path="builtin:tiny-llama"), MicroBatch(rows=1, max_length=8))
    assert (facts.footprints, facts.untraced) == ((), "RuntimeError: no values here")


def test_the_hull_is_exact_for_any_share_of_the_gradients() -> None:
    moments = [(100, 0), (98, 10), (60, 20), (65, 30), (20, 80), (0, 90), (0, 95)]
    found = footprint("float32", Timeline(forward=100, logits=0, moments=moments))
    for share in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        assert found.most(share) == int(max(most + share * gradients for most, gradients in moments))
    assert len(found.moments) < len(moments)


@pytest.mark.parametrize(
    ("tokens", "task", "pairs", "shape"),
    [
        (None, "causal_lm", False, (8, 512)),
        (4096, "causal_lm", False, (8, 512)),
        (700, "causal_lm", False, (1, 700)),
        (4096, "seq2seq_lm", False, (4, 512)),
        (4096, "sequence_classification", False, (8, 512)),
        (4096, "sequence_classification", True, (4, 512)),
    ],
)
def test_the_shape_of_a_micro_batch(tokens: int | None, task: str, pairs: bool, shape: tuple[int, int]) -> None:
    assert MicroBatch(rows=8, tokens=tokens, max_length=512, pairs=pairs).shape(task) == shape


@pytest.mark.parametrize("is_adapted", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_a_reward_model_is_traced_on_pairs(name: str, is_adapted: bool) -> None:
    """An upper bound: T5's rows are taken to be eos tokens throughout."""
    lora = {"type": "lora", "r": 2, "target_modules": "all-linear"} if is_adapted else None
    given = {"path": f"builtin:tiny-{name}", "task": "sequence_classification", "adapter": lora}
    asked = ModelRequest.model_validate(given)
    facts = answer.describe(asked, BATCH.model_copy(update={"pairs": True}))
    model = make_trainable(load_model(asked, facts), facts, asked.adapter).train()
    _is_measured(facts, model, 2 * ROWS, torch.zeros(ROWS), preference_loss())


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_a_classifier_is_traced_on_classes(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By what its distillation takes, the teacher aside."""
    asked = ModelRequest(path=str(sharp_classifier_like(f"tiny-{name}", tmp_path)))
    capfd.readouterr()
    facts = answer.describe(asked, BATCH)
    assert capfd.readouterr().err == ""
    student = ClassifierDistillation(load_model(asked, facts).train(), None, DistillSettings(alpha=0.0))

    def objective(model: Any, batch: Batch) -> torch.Tensor:
        loss: torch.Tensor = model(batch.labels, batch.places, **batch.inputs)
        return loss

    _is_measured(facts, student, ROWS, torch.ones(ROWS, dtype=torch.long), objective)


def _is_measured(facts: ModelFacts, model: Any, rows: int, labels: torch.Tensor, objective: Objective) -> None:
    """The footprint is what a real pass over texts takes, or up to a tenth more."""
    assert facts.untraced is None
    ids = torch.full((rows, LENGTH), 5)
    ids[:, -2] = 1 if facts.pooling == "eos" else 2
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    batch = Batch({"input_ids": ids, "attention_mask": mask}, labels, len(labels), ids.numel())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    start = [*model.parameters(), *model.buffers(), *(parameter.grad for parameter in trained)]
    held = sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in start}.values())
    with Peak([*start, ids, mask, batch.labels]) as peak:
        objective(model, batch).backward()
    most, [found] = peak.bytes - held, facts.footprints
    assert 0.98 * most <= found.most(0.0) <= 1.1 * most
    assert found.moments[-1][1] == sum(parameter.nbytes for parameter in trained)


def test_what_cannot_be_traced_is_said_by_the_facts_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """torch logs the traceback of an operation that fails without values, by a handler of its own."""

    def breaks(*arguments: Any) -> Any:
        with FakeTensorMode():
            return torch.empty(4) + torch.empty(4, 2)

    monkeypatch.setattr(answer, "footprint_of", breaks)
    facts = answer.describe(ModelRequest(path="builtin:tiny-llama"), BATCH)
    assert facts.untraced is not None and "[4, 2]" in facts.untraced
    assert capfd.readouterr().err == ""
    os.write(2, b"and then")
    assert capfd.readouterr().err == "and then"
