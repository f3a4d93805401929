"""Adapters are PEFT's: the same parameters, gradients and files, for causal and encoder-decoder models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import TypeAdapter
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    PreTrainedConfig,
    T5Config,
)

from scaleup.config.adapters import AdapterConfig
from scaleup.config.schema import ModelConfig
from scaleup.describe.model import model_facts
from scaleup.errors import ScaleupError
from scaleup.models.adapted import load_finished, make_trainable
from scaleup.models.adapters import adapt, is_adapted, save_adapter
from scaleup.models.load import load_model, load_tokenizer
from scaleup.models.sources import materialize
from scaleup.plan.facts import ModelFacts, ModelRequest
from scaleup.train.head_loss import fuse_head, loss_head

AUTO = {"causal_lm": AutoModelForCausalLM, "seq2seq_lm": AutoModelForSeq2SeqLM}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora", "r": 4},
    "all-linear": {"type": "lora", "r": 2, "lora_alpha": 16, "target_modules": "all-linear", "use_rslora": True},
    "dora": {"type": "lora", "r": 4, "use_dora": True},
    "head": {"type": "lora", "r": 4, "modules_to_save": ["lm_head"]},
    "biases": {"type": "lora", "r": 4, "bias": "all"},
    "ia3": {"type": "ia3"},
    "adalora": {"type": "adalora", "init_r": 4, "target_r": 2},
    "prompt_tuning": {"type": "prompt_tuning", "num_virtual_tokens": 5},
    "prompt of a text": {
        "type": "prompt_tuning",
        "num_virtual_tokens": 5,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "good?",
    },
    "prefix": {"type": "prefix", "num_virtual_tokens": 5},
    "projected prefix": {
        "type": "prefix_tuning",
        "num_virtual_tokens": 5,
        "prefix_projection": True,
        "encoder_hidden_size": 7,
    },
}
MODELS = ("tiny-llama", "tiny-qwen2", "tiny-t5")
FURTHER = ("lora", "prompt_tuning", "prompt of a text", "prefix")
VIRTUAL = FURTHER[1:]
CPU = torch.device("cpu")


def adapter_of(name: str) -> Any:
    return TypeAdapter(AdapterConfig).validate_python(ADAPTERS[name])


def asked(model: str, name: str) -> ModelFacts:
    return model_facts(ModelRequest(path=f"builtin:{model}", adapter=adapter_of(name)))


def inputs(facts: ModelFacts) -> dict[str, torch.Tensor]:
    ids = torch.arange(5, 25).view(2, 10)
    return {"input_ids": ids} | ({"decoder_input_ids": ids[:, :4]} if facts.task == "seq2seq_lm" else {})


def adapted(model: str, name: str) -> tuple[Any, ModelFacts]:
    facts = asked(model, name)
    torch.manual_seed(0)
    base = load_model(ModelConfig(path=facts.location), facts)
    return adapt(base, adapter_of(name), facts.task, facts.location), facts


def logits(model: Any, facts: ModelFacts) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs(facts)).logits


def step(model: Any, facts: ModelFacts) -> None:
    model.train()
    model(**inputs(facts)).logits.float().logsumexp(-1).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad.sign()


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("model", MODELS)
def test_it_trains_what_the_plan_says_and_plain_peft_reloads_it(model: str, name: str, tmp_path: Path) -> None:
    trained, facts = adapted(model, name)
    assert (facts.num_trainable_parameters, facts.num_parameters) == trained.get_nb_trainable_parameters()
    before = {name: parameter.detach().clone() for name, parameter in trained.named_parameters()}
    untouched = logits(trained, facts)
    step(trained, facts)
    step(trained, facts)  # the first moves only one of lora's two matrices
    changed = {name for name, parameter in trained.named_parameters() if not torch.equal(parameter, before[name])}
    trainable = {name: parameter for name, parameter in trained.named_parameters() if parameter.requires_grad}
    assert changed == set(trainable)
    save_adapter(trained, tmp_path, {name: parameter.detach() for name, parameter in trainable.items()})
    whole = sum(parameter.numel() for parameter in trainable.values())
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 4 * whole + 20_000
    base = AUTO[facts.task].from_pretrained(facts.location)
    again = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(again, facts), logits(trained, facts))
    assert not torch.allclose(untouched, logits(trained, facts))


@pytest.mark.parametrize("name", FURTHER)
@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5"])
def test_the_folder_is_a_model_to_evaluate_and_to_train_further(model: str, name: str, tmp_path: Path) -> None:
    trained, facts = adapted(model, name)
    step(trained, facts)
    state = {name: p.detach() for name, p in trained.named_parameters() if p.requires_grad}
    save_adapter(trained, tmp_path, state)
    found = model_facts(ModelConfig(path=str(tmp_path)))
    assert (found.location, found.adapter, found.architecture) == (facts.location, str(tmp_path), facts.architecture)
    assert found.num_virtual_tokens == facts.num_virtual_tokens == (5 if name in VIRTUAL else 0)
    assert found.num_trainable_parameters == facts.num_trainable_parameters
    config = ModelConfig(path=str(tmp_path))
    finished = load_finished(config, found, None, "no", CPU)
    assert torch.equal(logits(finished, found), logits(trained, facts))
    assert name != "lora" or not any(parameter.requires_grad for parameter in finished.parameters())
    further = make_trainable(load_model(config, found), found, None)
    assert {name for name, p in further.named_parameters() if p.requires_grad} == set(state)
    assert torch.equal(logits(further, found), logits(trained, facts))
    given = TypeAdapter(AdapterConfig).validate_python({"type": ADAPTERS[name]["type"], "path": str(tmp_path)})
    base = load_model(ModelConfig(path=facts.location), facts)
    onward = adapt(base, given, facts.task)
    assert torch.equal(logits(onward, facts), logits(trained, facts))
    step(onward, facts)
    assert not torch.equal(logits(onward, facts), logits(trained, facts))


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5"])
def test_a_prompt_starts_as_its_text(model: str) -> None:
    prompt, facts = adapted(model, "prompt of a text")
    ids = load_tokenizer(ModelConfig(path=facts.location), facts.location)("good?")["input_ids"]
    expected = prompt.get_input_embeddings().weight[ids]
    weight = prompt.prompt_encoder["default"].embedding.weight
    assert torch.equal(weight[:5], expected[:5])


@pytest.mark.parametrize(
    ("base", "shape"),
    [
        (
            T5Config(vocab_size=99, d_model=32, d_kv=12, num_heads=2, num_layers=1, num_decoder_layers=3),
            (5, 3 * 2 * 24),
        ),
        (BartConfig(vocab_size=99, d_model=32, encoder_layers=1, decoder_layers=3), (5, 3 * 2 * 32)),
    ],
    ids=["t5", "bart"],
)
def test_a_prefix_has_the_shape_of_the_decoder(base: PreTrainedConfig, shape: tuple[int, int]) -> None:
    """FLAN-T5 small's heads are not as wide together as its hidden states, and a decoder may have more layers. With an
    odd number of them PEFT uses all of a prefix, with an even one every other layer's part, twice."""
    model = adapt(AutoModelForSeq2SeqLM.from_config(base), adapter_of("prefix"), "seq2seq_lm")
    assert model.prompt_encoder["default"].embedding.weight.shape == shape
    ids = torch.arange(5, 15).view(2, 5)
    model(input_ids=ids, decoder_input_ids=ids).logits.float().logsumexp(-1).sum().backward()
    gradient = model.prompt_encoder["default"].embedding.weight.grad
    assert gradient.abs().sum(0).count_nonzero() == shape[1], "a part that nothing attends to"


def test_selective_trains_what_matches() -> None:
    facts = model_facts(ModelConfig(path="builtin:tiny-llama"))
    adapter = TypeAdapter(AdapterConfig).validate_python({"type": "selective", "parameters": ["*layers.1.*", "*norm*"]})
    chosen = adapt(load_model(ModelConfig(path=facts.location), facts), adapter, facts.task)
    assert not is_adapted(chosen)
    trainable = {name for name, parameter in chosen.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in chosen.named_parameters() if "layers.1." in name or "norm" in name}
    said = model_facts(ModelRequest(path="builtin:tiny-llama", adapter=adapter))
    assert said.num_parameters == facts.num_parameters
    assert said.num_trainable_parameters == sum(p.numel() for p in chosen.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("adapter", "where", "what"),
    [
        ({"type": "lora", "target_modules": ["q", "v"]}, "adapter.target_modules", "Target modules"),
        ({"type": "selective", "parameters": ["*nothing*"]}, "adapter.parameters", "'*nothing*' matches no parameter"),
    ],
)
def test_what_matches_nothing_is_refused_by_the_plan(adapter: dict[str, Any], where: str, what: str) -> None:
    with pytest.raises(ScaleupError) as caught:
        model_facts(ModelRequest.model_validate({"path": "builtin:tiny-llama", "adapter": adapter}))
    [problem] = caught.value.problems
    assert problem.where == where
    assert what in problem.what
    assert "q_proj" in problem.remedy or where == "adapter.parameters"


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5"])
def test_the_head_is_fused_unless_it_is_trained_apart(model: str, name: str) -> None:
    trained, _ = adapted(model, name)
    fuse_head(trained)
    assert (loss_head(trained) is None) == (name == "head")


SHAPES: dict[str, dict[str, Any]] = {
    "llama-7b": {"model_type": "llama"},  # the defaults of transformers are those of the first 7B
    "llama-70b": {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "flan-t5-base": {"model_type": "t5", "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "flan-t5-xl": {"model_type": "t5", "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
}
SIZES = {"llama-7b": 6_738_415_616, "llama-70b": 68_976_648_192}
"""What their papers' code gives."""


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=pytest.mark.slow if shape.endswith(("70b", "xl")) else []) for shape in SHAPES]
)
def test_full_sizes_are_counted_from_a_config_alone(shape: str, tmp_path: Path) -> None:
    settings = SHAPES[shape]
    tokenizer = materialize(f"builtin:tiny-{settings['model_type']}")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tokenizer) / file, tmp_path / file)
    adapter = {"type": "lora", "r": 16, "target_modules": "all-linear"}
    facts = model_facts(ModelRequest.model_validate({"path": str(tmp_path), "adapter": adapter}))
    with torch.device("meta"):
        shell = AUTO[facts.task].from_config(AutoConfig.from_pretrained(tmp_path))
        shell.tie_weights()
        plain = sum(parameter.numel() for parameter in shell.parameters())
        theirs = get_peft_model(shell, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))
    assert (facts.num_trainable_parameters, facts.num_parameters) == theirs.get_nb_trainable_parameters()
    assert plain == SIZES.get(shape, plain)
