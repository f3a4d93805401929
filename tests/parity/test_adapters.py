"""What a run trains, against a loop written by hand over plain PEFT and transformers: same losses, same adapters."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

from scaleup.config.adapters import AdapterConfig
from scaleup.config.schema import ModelConfig
from scaleup.data.tokenization import IGNORE
from scaleup.describe.model import model_facts
from scaleup.distributed.engines import base_optimizer
from scaleup.models.adapted import load_base, make_trainable
from scaleup.models.adapters import TASK_TYPES, save_adapter
from scaleup.plan.facts import ModelRequest
from scaleup.train.adalora import RankAllocation
from scaleup.train.head_loss import fuse_head
from scaleup.train.losses import token_loss_sum
from scaleup.train.step import train_step
from tests.unit.data import tiny

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
    "dora": {"type": "lora", "r": 4, "use_dora": True},
    "head": {"type": "lora", "r": 4, "modules_to_save": ["lm_head"]},
    "ia3": {"type": "ia3"},
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 5},
    "prefix": {"type": "prefix", "num_virtual_tokens": 5},
    "projected": {"type": "prefix", "num_virtual_tokens": 5, "prefix_projection": True, "encoder_hidden_size": 7},
}
MAKE = {
    "ia3": IA3Config,
    "prompt_tuning": PromptTuningConfig,
    "prefix": PrefixTuningConfig,
    "projected": PrefixTuningConfig,
}
BITS: dict[str, Any] = {
    "8bit": {"load_in_8bit": True},
    "4bit": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.float32,
    },
}
CASES = [(kind, None) for kind in ADAPTERS] + [("lora", "8bit"), ("lora", "4bit")]
NUM_STEPS = 5


def ours(name: str, kind: str, bits: Any) -> tuple[Any, Any]:
    adapter = TypeAdapter(AdapterConfig).validate_python(ADAPTERS[kind])
    facts = model_facts(ModelRequest(path=f"builtin:tiny-{name}", adapter=adapter, quantization=bits))
    base = load_base(ModelConfig(path=facts.location), facts, bits, "no", torch.device("cpu"))
    torch.manual_seed(0)
    model = make_trainable(base, facts, adapter)
    fuse_head(model)
    return model.train(), facts


def theirs(location: str, task: str, kind: str, bits: Any) -> Any:
    auto = AutoModelForSeq2SeqLM if task == "seq2seq_lm" else AutoModelForCausalLM
    options = {"quantization_config": BitsAndBytesConfig(**BITS[bits]), "device_map": {"": "cpu"}} if bits else {}
    base = auto.from_pretrained(location, **options)
    settings = {key: value for key, value in ADAPTERS[kind].items() if key != "type"}
    task_type = "SEQ_2_SEQ_LM" if task == "seq2seq_lm" else "CAUSAL_LM"
    torch.manual_seed(0)
    return get_peft_model(base, MAKE.get(kind, LoraConfig)(task_type=task_type, **settings)).train()


def plain_loss(model: Any, batch: Any) -> torch.Tensor:
    """The mean that PEFT and transformers give by themselves: causal models take labels that are not shifted."""
    labels = batch.labels
    if not model.config.is_encoder_decoder:
        labels = F.pad(labels, (1, 0), value=IGNORE)[:, :-1]
    return model(**batch.inputs, labels=labels).loss


def descend(model: Any, loss: torch.Tensor) -> float:
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.3 * parameter.grad
    return loss.item()


@pytest.mark.parametrize(("kind", "bits"), CASES)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_same_training_as_plain_peft(name: str, kind: str, bits: Any) -> None:
    model, facts = ours(name, kind, bits)
    plain = theirs(facts.location, facts.task, kind, bits)
    batch = tiny.collator(name, model)(tiny.encode(name))
    for _ in range(NUM_STEPS):
        loss = descend(model, token_loss_sum(model, batch) / batch.num_labels)
        other = descend(plain, plain_loss(plain, batch))
        assert loss == pytest.approx(other, rel=1e-5)
    left, right = (
        {name: parameter for name, parameter in m.named_parameters() if parameter.requires_grad} for m in (model, plain)
    )
    assert left.keys() == right.keys()
    difference = max(float((left[name] - right[name]).detach().abs().max()) for name in left)
    print(f"{name} {kind} {bits}: largest difference of a weight {difference:.1e}")
    assert difference <= 1e-5


ADALORA = {"init_r": 6, "target_r": 3, "tinit": 1, "tfinal": 2, "deltaT": 2, "lora_alpha": 16, "orth_reg_weight": 0.3}
ADALORA_STEPS = 9


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_adalora_is_that_of_a_loop_over_plain_peft(name: str, tmp_path: Path) -> None:
    """Our step, with two micro-batches, beside the loop of PEFT's documentation with one: losses with the orthogonality
    term, ranks that go down at the same places, and files that give the same model."""
    adapter = TypeAdapter(AdapterConfig).validate_python({"type": "adalora", **ADALORA})
    facts = model_facts(ModelRequest(path=f"builtin:tiny-{name}", adapter=adapter))
    torch.manual_seed(0)
    model = make_trainable(tiny.model(name), facts, adapter)
    assert (facts.num_trainable_parameters, facts.num_parameters) == model.get_nb_trainable_parameters()
    fuse_head(model)
    runtime = tiny.single_process(tmp_path)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapped, optimizer = runtime.prepare(model.train(), torch.optim.SGD(trained, lr=1.0))
    ranks = RankAllocation(model, base_optimizer(optimizer), ADALORA_STEPS)

    task_type = TASK_TYPES[facts.task]
    torch.manual_seed(0)
    plain = get_peft_model(
        tiny.model(name), AdaLoraConfig(task_type=task_type, total_step=ADALORA_STEPS, **ADALORA)
    ).train()
    descent = torch.optim.SGD([parameter for parameter in plain.parameters() if parameter.requires_grad], lr=1.0)

    rows, collate = tiny.encode(name), tiny.collator(name, model)
    whole, parts, left = collate(rows), [collate(rows[:2]), collate(rows[2:])], []
    for step in range(1, ADALORA_STEPS + 1):
        loss = train_step(runtime, wrapped, optimizer, parts, token_loss_sum, 0.0, ranks.penalty).loss
        other = plain_loss(plain, whole)
        other.backward()
        descent.step()
        plain.base_model.update_and_allocate(step)
        descent.zero_grad()
        assert loss == pytest.approx(other.item(), rel=1e-5)
        left.append(sum(int((p != 0).sum()) for n, p in model.named_parameters() if "lora_E" in n))
    pattern = model.active_peft_config.rank_pattern
    assert pattern == plain.active_peft_config.rank_pattern
    assert any(before > after for before, after in pairwise(left[:-2])), "ranks went down before the last steps"
    matrices = len(pattern)
    assert left[-1] == ADALORA["target_r"] * matrices < ADALORA["init_r"] * matrices
    weights = dict(plain.named_parameters())
    difference = max(float((p - weights[n]).detach().abs().max()) for n, p in model.named_parameters())
    print(f"{name}: largest difference of a weight {difference:.1e}, ranks {left}")
    assert difference <= 1e-5

    save_adapter(model, tmp_path / "a", runtime.trained_state(wrapped))
    again = PeftModel.from_pretrained(tiny.model(name), tmp_path / "a")
    assert sum(p.numel() for n, p in again.named_parameters() if "lora_E" in n) == left[-1], (
        "masked ranks are not saved"
    )
    with torch.no_grad():
        before, after = (each.eval()(**whole.inputs).logits for each in (model, again))
    print(f"reloaded: largest difference of a logit {float((before - after).abs().max()):.1e}")
    assert torch.allclose(before, after, atol=1e-5, rtol=0), "sums without what was masked"
