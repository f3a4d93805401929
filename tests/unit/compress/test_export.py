"""An exported folder is the model it was made of: by plain PEFT's and Transformers' own reading of both."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from scaleup.compress.export import Check, from_trained, read_back, stored_dtype, whole_model, write_folder
from scaleup.compress.probes import drawn_probes
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.export import ExportConfig
from scaleup.describe.model import model_facts
from scaleup.errors import ScaleupError
from scaleup.models.load import load_tokenizer
from scaleup.plan.facts import ModelFacts

CPU = torch.device("cpu")
AUTO = {"causal_lm": AutoModelForCausalLM, "seq2seq_lm": AutoModelForSeq2SeqLM}
TASKS = {"causal_lm": "CAUSAL_LM", "seq2seq_lm": "SEQ_2_SEQ_LM"}
MODELS = ("tiny-llama", "tiny-qwen2", "tiny-gpt2", "tiny-t5", "tiny-bart")
ADAPTERS: dict[str, Any] = {
    "lora": lambda **task: LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **task),
    "dora": lambda **task: LoraConfig(use_dora=True, **task),
    "rslora": lambda **task: LoraConfig(lora_alpha=32, use_rslora=True, **task),
    "biases": lambda **task: LoraConfig(bias="all", **task),
    "whole head": lambda **task: LoraConfig(modules_to_save=["lm_head"], **task),
    "lora on the head": lambda **task: LoraConfig(target_modules=["lm_head"], **task),
    "ia3": lambda **task: IA3Config(**task),
}


def trained(model: str, kind: str, folder: Path) -> ModelFacts:
    """A saved adapter that moves logits."""
    base = model_facts(ModelConfig(path=f"builtin:{model}"))
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied weights
        settings = ADAPTERS[kind](task_type=TASKS[base.task])
        adapted = get_peft_model(AUTO[base.task].from_pretrained(base.location), settings)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
        adapted.save_pretrained(folder)
        return model_facts(ModelConfig(path=str(folder)))


def config_of(facts: ModelFacts, **export: Any) -> ExportConfig:
    raw = {"stage": "export", "name": "x", "model": {"path": facts.adapter or facts.location}, "export": export}
    return ExportConfig.model_validate(raw)


def check_of(config: ExportConfig, facts: ModelFacts) -> Check:
    return Check(drawn_probes(facts), config.export.tolerance, CPU)


def written(config: ExportConfig, facts: ModelFacts, folder: Path) -> dict[str, float]:
    """What the stage does, without rows."""
    check = check_of(config, facts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, found = whole_model(config, facts, check)
    dtype = getattr(torch, stored_dtype(config, facts))
    tokenizer, size = load_tokenizer(config.model, facts.location), config.export.max_shard_size
    rounded, true = write_folder(model, tokenizer, folder, dtype, size, check)
    return found | rounded | read_back(config.model, facts, folder, check, true)


@torch.no_grad()
def logits(model: Any, facts: ModelFacts) -> torch.Tensor:
    """On ids of our own choice."""
    ids = torch.arange(5, 69).view(2, 32)
    more = {"decoder_input_ids": ids[:, 7:19]} if facts.task == "seq2seq_lm" else {}
    return model.eval()(input_ids=ids, **more).logits.float()


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("model", MODELS)
def test_the_folder_is_base_and_adapter(model: str, kind: str, tmp_path: Path) -> None:
    facts = trained(model, kind, tmp_path / "adapter")
    found = written(config_of(facts), facts, tmp_path / "model")
    base = AUTO[facts.task].from_pretrained(facts.location)
    plain = logits(base, facts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        true = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"), facts)
    moved = float((true - plain).abs().max() / true.abs().max())
    again = logits(AUTO[facts.task].from_pretrained(tmp_path / "model"), facts)
    off = float((again - true).abs().max() / true.abs().max())
    print(f"{model} {kind}: the adapter moves {moved:.1e}, the folder is off by {off:.1e}; {found}")
    assert min(moved, found["adapter"]) > 5e-4, "an adapter that does nothing would prove nothing"
    assert off <= 1e-5
    assert found["merged"] <= 1e-5 and found["reloaded"] == 0
    assert not any("lora" in name or "ia3" in name for name in load_file(tmp_path / "model/model.safetensors"))


@pytest.mark.parametrize("kind", ["whole head", "lora on the head", "lora"])
@pytest.mark.parametrize("model", ["tiny-qwen2", "tiny-gpt2", "tiny-t5"])
def test_a_head_of_its_own_is_said_to_be_so(model: str, kind: str, tmp_path: Path) -> None:
    """T5's always is; the others' once an adapter moves it."""
    facts = trained(model, kind, tmp_path / "adapter")
    written(config_of(facts), facts, tmp_path / "model")
    is_tied = json.loads((tmp_path / "model/config.json").read_text())["tie_word_embeddings"]
    assert is_tied == (kind == "lora" and model != "tiny-t5")
    assert ("lm_head.weight" in load_file(tmp_path / "model/model.safetensors")) == (not is_tied)


def types_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(("dtype", "stored"), [("auto", "F32"), ("bfloat16", "BF16"), ("float16", "F16")])
@pytest.mark.parametrize("model", ["tiny-llama", "tiny-gpt2"])
def test_weights_are_written_in_the_type_asked_for(model: str, dtype: str, stored: str, tmp_path: Path) -> None:
    facts = model_facts(ModelConfig(path=f"builtin:{model}"))
    found = written(config_of(facts, dtype=dtype), facts, tmp_path)
    assert types_in(tmp_path) == {stored}
    assert found.keys() == ({"reloaded"} if dtype == "auto" else {"rounded", "reloaded"})
    assert found["reloaded"] == 0 and 0 < found.get("rounded", 0.01) < 0.05
    assert (
        str(AutoModelForCausalLM.from_pretrained(tmp_path).dtype)
        == f"torch.{stored_dtype(config_of(facts, dtype=dtype), facts)}"
    )


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5"])
def test_a_large_model_is_several_files(model: str, tmp_path: Path) -> None:
    """None larger than the config says, with the index by which Transformers finds each weight."""
    facts = model_facts(ModelConfig(path=f"builtin:{model}"))
    found = written(config_of(facts, max_shard_size="0.1MB"), facts, tmp_path)
    files = list(tmp_path.glob("model-*-of-*.safetensors"))
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(files) > 3 and set(places.values()) == {file.name for file in files}
    assert found["reloaded"] == 0
    base = AUTO[facts.task].from_pretrained(facts.location)
    assert torch.equal(logits(AUTO[facts.task].from_pretrained(tmp_path), facts), logits(base, facts))
    for file in files:
        weights = load_file(file)
        assert len(weights) == 1 or sum(weight.nbytes for weight in weights.values()) <= 100_000


def test_auto_is_the_type_of_the_base(tmp_path: Path) -> None:
    facts = model_facts(ModelConfig(path="builtin:tiny-llama"))
    written(config_of(facts, dtype="bfloat16"), facts, tmp_path / "low")
    low = model_facts(ModelConfig(path=str(tmp_path / "low")))
    found = written(config_of(low), low, tmp_path / "again")
    assert types_in(tmp_path / "again") == {"BF16"}
    assert found == {"rounded": 0, "reloaded": 0}, "they were rounded already"


def test_merging_that_moves_too_much_is_refused(tmp_path: Path) -> None:
    facts = trained("tiny-llama", "lora", tmp_path / "adapter")
    config = config_of(facts, tolerance=1e-12)
    with pytest.raises(ScaleupError, match="merging the adapter moves logits by") as caught:
        whole_model(config, facts, check_of(config, facts))
    assert caught.value.problems[0].where == "export.tolerance"


@pytest.mark.parametrize("fault", ["moved", "nan", "gone"])
def test_a_folder_that_is_another_model_is_refused(fault: str, tmp_path: Path) -> None:
    facts = model_facts(ModelConfig(path="builtin:tiny-llama"))
    config = config_of(facts)
    check = check_of(config, facts)
    model, _ = whole_model(config, facts, check)
    _, true = write_folder(model, load_tokenizer(config.model, facts.location), tmp_path, torch.float32, "5GB", check)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    if fault == "gone":
        del weights[name]
    else:
        weights[name][3, 4] += 1 if fault == "moved" else float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ScaleupError, match="reading the written folder again moves logits"):
        read_back(config.model, facts, tmp_path, check, true)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5"])
def test_how_far_it_is_from_a_quantized_training(model: str, bits: str, tmp_path: Path) -> None:
    facts = trained(model, "lora", tmp_path / "adapter")
    config = config_of(facts, trained_in=bits)
    check = check_of(config, facts)
    merged, found = whole_model(config, facts, check)
    assert found["merged"] <= 1e-5, "whatever it was trained on, it is merged into the unquantized base"
    far = from_trained(config, facts, check, check.logits(merged))["trained"]
    print(f"{model} {bits}: {far:.1e}")
    assert 1e-3 < far < 0.5
    assert from_trained(config_of(facts), facts, check, []) == {}


def test_what_peft_cannot_merge_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    """The plan refuses it first; a kind that it does not know would come here."""
    facts = model_facts(ModelConfig(path="builtin:tiny-llama"))
    base = AutoModelForCausalLM.from_pretrained(facts.location)
    get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).save_pretrained(tmp_path)
    soft = facts.model_copy(update={"adapter": str(tmp_path)})
    with pytest.raises(ScaleupError, match="cannot be merged") as caught:
        whole_model(config_of(soft), soft, check_of(config_of(soft), soft))
    assert caught.value.problems[0].where == "model.path"
