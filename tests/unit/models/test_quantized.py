"""Bases in 8 and 4 bits: what is quantized, when, and how large it is, and that an evaluation leaves it alone."""

from __future__ import annotations

import gc
import mmap
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from pydantic import TypeAdapter

from scaleup.config.adapters import AdapterConfig
from scaleup.config.schema import ModelConfig
from scaleup.describe.model import model_facts
from scaleup.distributed.deferred import Deferred, fill
from scaleup.distributed.partition import in_turn
from scaleup.models import quantized
from scaleup.models.adapted import load_base, load_finished
from scaleup.models.adapters import adapt
from scaleup.models.heads import has_plain_head
from scaleup.plan.facts import ModelFacts, ModelRequest
from scaleup.plan.memory import quantized_bytes

CPU = torch.device("cpu")
BITS = ("8bit", "4bit")
MODELS = ("tiny-llama", "tiny-t5", "tiny-gpt2")
LORA = TypeAdapter(AdapterConfig).validate_python({"type": "lora", "r": 4})


def loaded(model: str, bits: Any, precision: str = "no") -> tuple[Any, ModelFacts]:
    facts = model_facts(ModelRequest(path=f"builtin:{model}", quantization=bits))
    return load_base(ModelConfig(path=facts.location), facts, bits, precision, CPU), facts


def adapted(model: str, deferred: bool, **lora: Any) -> Any:
    facts = model_facts(ModelRequest(path=f"builtin:{model}", quantization="4bit"))
    base = load_base(ModelConfig(path=facts.location), facts, "4bit", "no", CPU, deferred=deferred)
    torch.manual_seed(0)
    return adapt(base, LORA.model_copy(update=lora), facts.task)


@pytest.mark.parametrize("model", MODELS)
def test_4_bits_are_read_and_quantized_a_matrix_at_a_time(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When an engine shards them, and not before. Here each is dropped as soon as the next is asked for."""
    quantize, made = quantized._quantized, []
    monkeypatch.setattr(quantized, "_quantized", lambda *given: made.append(1) or quantize(*given))
    whole, later = adapted(model, deferred=False), adapted(model, deferred=True)
    expected = [(name, p, getattr(p, "quant_state", None)) for name, p in whole.named_parameters()]
    count = sum(state is not None for *_, state in expected)
    assert len(made) == count > 0, "one that is not to wait is read at once"
    assert has_plain_head(later.get_base_model()) == has_plain_head(whole.get_base_model())
    assert len(made) == count, "neither the adapter nor a look at the head quantizes"
    base = [p for p in later.parameters() if not p.requires_grad]
    assert all(isinstance(p, Deferred) for p in base)
    for (name, other, state), parameter in zip(expected, in_turn(later, torch.float32), strict=True):
        assert sum(p.numel() for p in base if not isinstance(p, Deferred)) in (0, parameter.numel())
        assert type(parameter) is type(other) and torch.equal(parameter, other), name
        if state is not None:
            assert parameter.quant_state.as_dict().keys() == state.as_dict().keys()
            assert all(
                torch.equal(parameter.quant_state.as_dict(packed=True)[key], value)
                for key, value in state.as_dict(packed=True).items()
            )
        parameter.data = torch.empty(0, dtype=parameter.dtype)
    assert len(made) == 2 * count


def test_what_reads_4_bits_before_they_are_sharded_finds_them() -> None:
    """DoRA, for the norms of its directions; and a copy is another reader."""
    whole, later = (adapted("tiny-llama", deferred, use_dora=True) for deferred in (False, True))
    copy = deepcopy(later)
    for filled in (later, copy):
        fill(filled)
        for (name, one), (_, other) in zip(whole.named_parameters(), filled.named_parameters(), strict=True):
            assert type(one) is type(other) and torch.equal(one, other), name
    ids = torch.arange(5, 45).view(2, 20)
    logits = [model(input_ids=ids).logits for model in (whole, later, copy)]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def bytes_of(module: Any) -> int:
    if isinstance(module, Linear8bitLt):
        scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
        return module.weight.nbytes + scales.nbytes
    state = module.weight.quant_state
    parts = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    return module.weight.nbytes + sum(part.nbytes for part in parts)


def batch(facts: ModelFacts) -> dict[str, torch.Tensor]:
    ids = torch.arange(5, 45).view(2, 20)
    return {"input_ids": ids} | ({"decoder_input_ids": ids[:, :6]} if facts.task == "seq2seq_lm" else {})


def gradients(model: Any, facts: ModelFacts) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(**batch(facts)).logits.float().logsumexp(-1).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("model", MODELS)
def test_what_is_quantized_is_what_the_plan_counts(model: str, bits: str) -> None:
    base, facts = loaded(model, bits)
    kind = Linear8bitLt if bits == "8bit" else Linear4bit
    modules = [module for module in base.modules() if isinstance(module, kind)]
    assert type(base.get_output_embeddings()) is torch.nn.Linear
    counted = [tensors for tensors in facts.tensors if tensors.quantized]
    assert sum(tensors.count for tensors in counted) == len(modules) > 0
    said = sum(tensors.count * quantized_bytes(tensors.shape, bits) for tensors in counted)
    assert said == sum(bytes_of(module) for module in modules)
    plain = model_facts(ModelConfig(path=f"builtin:{model}"))
    assert facts.num_parameters == plain.num_parameters


def mapped(folder: str) -> int:
    """How many bytes of a folder's files are mapped, whole pages counted."""
    gc.collect()
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if f"{folder}/" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in (line[0].split("-") for line in lines))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("model", MODELS)
def test_nothing_keeps_what_was_quantized_in_memory(model: str, bits: Any, tmp_path: Path) -> None:
    """A model in float32 is the mapped file itself; of a quantized one only the other tensors are."""
    builtin = model_facts(ModelRequest(path=f"builtin:{model}", quantization=bits))
    folder = str(shutil.copytree(builtin.location, tmp_path / model))
    facts = builtin.model_copy(update={"location": folder})
    plain = load_base(ModelConfig(path=folder), facts, None, "no", CPU)
    whole = mapped(folder)
    assert whole > 4 * facts.num_parameters
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    tied = plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    del plain
    assert mapped(folder) == 0
    base = load_base(ModelConfig(path=folder), facts, bits, "no", CPU)
    kept = [(name, p) for name, p in base.named_parameters() if type(p) is torch.nn.Parameter]
    assert kept and mapped(folder) <= sum(p.nbytes + 2 * mmap.PAGESIZE for _, p in kept) < whole
    for name, parameter in kept:
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0, msg=name)
    assert (base.get_output_embeddings().weight is base.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5"])
def test_an_evaluation_does_not_change_gradients(model: str, bits: str, precision: str) -> None:
    base, facts = loaded(model, bits, precision)
    trained = adapt(base, LORA, facts.task)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:  # zeros at first, and then half of the gradients are zeros too
                parameter.normal_(std=0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        before = gradients(trained, facts)
        with torch.no_grad():
            trained.eval()(**batch(facts))
        after = gradients(trained, facts)
    assert before.keys() == after.keys() and all("lora" in name for name in before)
    assert all(bool(gradient.abs().max() > 0) for gradient in before.values())
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("bits", BITS)
def test_dora_reads_the_matrices_in_every_pass(bits: str) -> None:
    """After which bitsandbytes would be without the scales of 8-bit rows, and the second pass fail."""
    base, facts = loaded("tiny-llama", bits)
    with torch.no_grad():
        before = base(**batch(facts)).logits
        dora = TypeAdapter(AdapterConfig).validate_python({"type": "lora", "r": 4, "use_dora": True})
        trained = adapt(base, dora, facts.task).eval()
        passes = [trained(**batch(facts)).logits for _ in range(3)]
    assert all(torch.equal(passes[0], again) for again in passes[1:])
    torch.testing.assert_close(passes[0], before, atol=1e-2, rtol=0)  # at first it adds nothing
    assert gradients(trained, facts) and gradients(trained, facts)


@pytest.mark.parametrize("bits", BITS)
def test_it_is_near_the_model_it_was(bits: str) -> None:
    facts = model_facts(ModelConfig(path="builtin:tiny-llama"))
    config = ModelConfig(path=facts.location)
    with torch.no_grad():
        low, high = (load_finished(config, facts, b, "no", CPU)(**batch(facts)).logits for b in (bits, None))
    assert 0 < (low - high).abs().mean() < 0.3 * high.abs().mean()


@pytest.mark.skipif(not has_avx512bf16(), reason="only there does bitsandbytes lay 4-bit weights out anew")
def test_without_the_guard_an_evaluation_would_change_them() -> None:
    """Otherwise the test above would prove nothing."""
    base, facts = loaded("tiny-llama", "4bit")
    weight = base.model.layers[0].mlp.up_proj.weight
    before = weight.data.clone()
    with torch.no_grad():
        base.eval()(**batch(facts))
    assert torch.equal(weight.data, before)
    for module in base.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = True
    with torch.no_grad():
        base(**batch(facts))
    after = base.model.layers[0].mlp.up_proj.weight.data
    assert after.shape != before.shape or not torch.equal(after, before)
