"""What a run trains, against a loop written by hand over plain PEFT and transformers: same losses, same adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

from scaleup.config.adapters import AdapterConfig
from scaleup.config.schema import ModelConfig
from scaleup.data.tokenization import IGNORE
from scaleup.models.adapted import load_base, make_trainable
from scaleup.models.facts import model_facts
from scaleup.plan.facts import AskedModel
from scaleup.train.head_loss import fuse_head
from scaleup.train.losses import token_loss_sum
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
    facts = model_facts(AskedModel(path=f"builtin:tiny-{name}", adapter=adapter, quantization=bits))
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
