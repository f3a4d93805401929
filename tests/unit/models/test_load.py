import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaleup.config.schema import ModelConfig
from scaleup.config.stages.sft import SFTConfig
from scaleup.describe.model import model_facts
from scaleup.errors import ScaleupError
from scaleup.models.load import enable_gradient_checkpointing, load_model, load_tokenizer, pad_token_id
from scaleup.models.sources import materialize


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A llama's folder that a test may damage."""
    return Path(shutil.copytree(materialize("builtin:tiny-llama"), tmp_path / "copy"))


def refusal(path: Path) -> str:
    model = ModelConfig(path=str(path))
    with pytest.raises(ScaleupError) as caught:
        load_model(model, model_facts(model))
    assert caught.value.problems[0].where == "model.path"
    return str(caught.value)


def test_missing_weights_are_refused_by_name(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    gone = [name for name in sorted(weights) if "layers.1" in name]
    save_file(
        {name: weights[name] for name in weights if name not in gone}, copy / "model.safetensors", {"format": "pt"}
    )
    message = refusal(copy)
    assert f"{len(gone)} weights of LlamaForCausalLM are not in its files: {', '.join(gone[:3])} and" in message


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(32)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    fault = "1 weight of LlamaForCausalLM has another shape in its files: model.norm.weight ([32], not [64])"
    assert f"model.path: {fault} -> check" in refusal(copy)
    del weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert f"1 weight of LlamaForCausalLM is not in its files: lm_head.weight; {fault} -> " in refusal(copy)


def test_weights_that_cannot_be_read_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"not weights")
    assert "cannot read the weights" in refusal(copy)
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")  # never unpickled
    assert "cannot read the weights" in refusal(copy)


def test_dtype_and_an_export_like_the_source(copy: Path, tmp_path: Path) -> None:
    model = ModelConfig(path=str(copy))
    facts = model_facts(model)
    assert load_model(model, facts, torch.bfloat16).dtype == torch.bfloat16
    loaded = load_model(model, facts)
    enable_gradient_checkpointing(loaded)
    loaded.train()
    loaded(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    loaded.save_pretrained(tmp_path / "export")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (copy, tmp_path / "export"))
    assert before == after
    assert after["use_cache"] is True


def test_gradient_checkpointing_recomputes_the_same() -> None:
    model = ModelConfig(path="builtin:tiny-t5")
    facts = model_facts(model)
    grads = []
    for checkpointing in (False, True):
        loaded = load_model(model, facts).train()
        if checkpointing:
            enable_gradient_checkpointing(loaded)
            assert loaded.is_activation_checkpointing
        loaded(input_ids=torch.tensor([[3, 4, 1]]), labels=torch.tensor([[5, 6, 1]])).loss.backward()
        grads.append({name: parameter.grad for name, parameter in loaded.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)  # the position bias sums in another order


def test_pad_token_id() -> None:
    location = materialize("builtin:tiny-gpt2")
    tokenizer = load_tokenizer(ModelConfig(path=location), location)
    assert pad_token_id(tokenizer) == tokenizer.pad_token_id == 0
    tokenizer.pad_token = None
    assert pad_token_id(tokenizer) == tokenizer.eos_token_id == 2
    tokenizer.eos_token = None
    assert pad_token_id(tokenizer) == 0


def test_the_tokenizer_of_another_folder() -> None:
    model = ModelConfig(path="builtin:tiny-gpt2", tokenizer=materialize("builtin:tiny-bart"))
    assert load_tokenizer(model, materialize(model.path)).eos_token == "</s>"


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2", "tiny-t5"])
def test_a_folder_that_a_tokenizer_saved_is_a_tokenizer(name: str, tmp_path: Path) -> None:
    of_model = load_tokenizer(ModelConfig(path=f"builtin:{name}"), materialize(f"builtin:{name}"))
    of_model.save_pretrained(tmp_path / "saved")
    model = ModelConfig(path="builtin:tiny-gpt2", tokenizer=str(tmp_path / "saved"))
    loaded = load_tokenizer(model, "not looked at", "teacher")
    assert type(loaded) is type(of_model) and loaded.get_vocab() == of_model.get_vocab()
    assert (loaded.eos_token, loaded.pad_token) == (of_model.eos_token, of_model.pad_token)
    assert loaded.chat_template == of_model.chat_template
    facts = model_facts(ModelConfig(path=f"builtin:{name}", tokenizer=str(tmp_path / "saved")))
    assert facts == model_facts(ModelConfig(path=f"builtin:{name}"))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("./nowhere", "the folder './nowhere' does not exist"),
        ("a/b/nowhere", "the folder 'a/b/nowhere' does not exist"),
        ("nowhere", "'nowhere' is no folder here, and no hub name that this machine can reach or has in its cache"),
    ],
)
def test_a_tokenizer_that_is_nowhere_is_told_of_as_such(name: str, what: str) -> None:
    with pytest.raises(ScaleupError) as refused:
        load_tokenizer(ModelConfig(path="builtin:tiny-llama", tokenizer=name), "")
    [problem] = refused.value.problems
    assert (problem.where, problem.what) == ("model.tokenizer", what)


def test_a_folder_without_a_tokenizer_is_refused_by_its_key(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ScaleupError) as caught:
        load_tokenizer(ModelConfig(path="builtin:tiny-gpt2", tokenizer=str(copy)), "not looked at", "teacher")
    assert str(caught.value).startswith(f"teacher.tokenizer: the folder {copy} has no tokenizer files")


def test_an_architecture_that_cannot_recompute_is_refused_by_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(path="builtin:tiny-llama")
    loaded = load_model(model, model_facts(model))
    monkeypatch.setattr(type(loaded), "supports_gradient_checkpointing", False)
    with pytest.raises(ScaleupError) as caught:
        enable_gradient_checkpointing(loaded)
    assert caught.value.problems[0].where in SFTConfig.model_fields
