"""Adapters that share a base: each gives the logits that it gives alone, in any order, and so does a quantized base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from scaleup.config.schema import ModelConfig
from scaleup.describe.model import model_facts
from scaleup.errors import ScaleupError
from scaleup.models.adapted import each_adapter, load_base
from scaleup.models.adapters import load_side_by_side, use_adapter
from scaleup.models.load import load_model, load_tokenizer
from scaleup.plan.facts import ModelFacts, ModelRequest

CPU = torch.device("cpu")
KINDS: dict[str, list[Any]] = {
    "lora": [
        lambda **task: LoraConfig(r=4, target_modules="all-linear", **task),
        lambda **task: LoraConfig(r=8, use_dora=True, **task),
        lambda **task: LoraConfig(r=2, modules_to_save=["lm_head"], **task),
    ],
    "ia3": [lambda **task: IA3Config(**task), lambda **task: IA3Config(**task)],
    "prompt": [
        lambda **task: PromptTuningConfig(num_virtual_tokens=3, **task),
        lambda **task: PromptTuningConfig(num_virtual_tokens=5, **task),
    ],
    "prefix": [
        lambda **task: PrefixTuningConfig(num_virtual_tokens=3, **task),
        lambda **task: PrefixTuningConfig(num_virtual_tokens=5, **task),
    ],
}
CASES = [
    (model, kind, None)
    for model in ("tiny-llama", "tiny-t5")
    for kind in KINDS
    if (model, kind) != ("tiny-t5", "prefix")
]
CASES += [("tiny-gpt2", "lora", None), ("tiny-llama", "lora", "8bit"), ("tiny-llama", "lora", "4bit")]


def saved(facts: ModelFacts, kind: str, folder: Path) -> dict[str, Path]:
    """By names that PEFT could not use for a module, and that stand in others' names."""
    names = ["v1.0", "lora", "v1.0-b"]
    task = {"causal_lm": "CAUSAL_LM", "seq2seq_lm": "SEQ_2_SEQ_LM"}[facts.task]
    for number, (name, settings) in enumerate(zip(names, KINDS[kind], strict=False)):
        torch.manual_seed(number)
        adapted = get_peft_model(load_model(ModelConfig(path=facts.location), facts), settings(task_type=task))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
        adapted.save_pretrained(folder / name)
    return {name: folder / name for name in names[: len(KINDS[kind])]}


@torch.no_grad()
def logits(model: Any, facts: ModelFacts) -> torch.Tensor:
    ids = torch.arange(5, 45).view(2, 20)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    more = {"decoder_input_ids": ids[:, :6]} if facts.task == "seq2seq_lm" else {}
    return model(**inputs, **more).logits[:, -20:]  # before them, causal models give those of virtual tokens


@pytest.mark.parametrize(("model", "kind", "bits"), CASES)
def test_each_gives_the_logits_that_it_gives_alone(model: str, kind: str, bits: Any, tmp_path: Path) -> None:
    facts = model_facts(ModelRequest(path=f"builtin:{model}", quantization=bits))
    config = ModelConfig(path=facts.location)

    def base() -> Any:
        return load_base(config, facts, bits, "no", CPU).eval()

    adapters = saved(facts, kind, tmp_path)
    alone = {name: logits(PeftModel.from_pretrained(base(), str(path)), facts) for name, path in adapters.items()}
    measured = base()
    plain = logits(measured, facts)
    together = load_side_by_side(measured, adapters)  # after it was used alone, as an evaluation does
    names = list(adapters)
    for name in [*names, *reversed(names)]:
        use_adapter(together, names.index(name))
        assert torch.equal(logits(together, facts), alone[name]), name
    found = [*alone.values(), plain]
    assert all(not torch.allclose(found[0], other, atol=1e-3) for other in found[1:]), "else it would prove nothing"
    assert not any(parameter.requires_grad for name, parameter in together.named_parameters() if "prompt" not in name)


def test_each_has_its_tokenizer_and_the_base_s_if_it_has_none(tmp_path: Path) -> None:
    facts = model_facts(ModelConfig(path="builtin:tiny-llama"))
    config = ModelConfig(path=facts.location)
    adapters = saved(facts, "ia3", tmp_path)
    own = load_tokenizer(config, facts.location)
    own.add_tokens(["<special>"])
    own.save_pretrained(adapters["lora"])
    base = load_model(config, facts)
    found = {n: len(t) for n, _, t in each_adapter(base, config, facts, {n: str(p) for n, p in adapters.items()})}
    assert found == {"v1.0": facts.tokenizer_size, "lora": facts.tokenizer_size + 1}


def test_one_that_does_not_fit_is_named(tmp_path: Path) -> None:
    facts = model_facts(ModelConfig(path="builtin:tiny-llama"))
    other = model_facts(ModelConfig(path="builtin:tiny-gpt2"))
    adapters = saved(facts, "ia3", tmp_path / "llama")
    strange = saved(other, "ia3", tmp_path / "gpt2")["lora"]
    with pytest.raises(ScaleupError, match="does not fit LlamaForCausalLM") as caught:
        load_side_by_side(load_model(ModelConfig(path=facts.location), facts), {**adapters, "strange": strange})
    assert caught.value.problems[0].where == "adapters.strange"
