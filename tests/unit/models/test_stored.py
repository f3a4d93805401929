"""A model whose weights are read when they are used, beside what Transformers loads by itself: every parameter and
buffer, what is tied, what is drawn, and what an adapter or a copy makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from scaleup.config.adapters import LoraAdapter, Quantization
from scaleup.config.schema import ModelConfig
from scaleup.describe.model import model_facts
from scaleup.distributed.deferred import Deferred, fill, is_deferred
from scaleup.distributed.runtime import seed_everything
from scaleup.models import load
from scaleup.models.adapted import load_base, make_trainable
from scaleup.models.heads import has_plain_head
from scaleup.models.load import load_model
from scaleup.models.sources import materialize
from scaleup.models.stored import DTYPES, StoredFile
from scaleup.plan.facts import ModelFacts, ModelRequest
from scaleup.rl.policy import Policy

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Models whose files are not those of the built-in ones."""
    folder = tmp_path_factory.mktemp("models")
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(1)
    tied = AutoModelForSeq2SeqLM.from_pretrained(materialize("builtin:tiny-t5"))
    tied.lm_head.weight = tied.shared.weight
    tied.save_pretrained(folder / "tied-t5")
    low = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)).to(torch.bfloat16)
    low.save_pretrained(folder / "bf16-sharded", max_shard_size="20KB")
    LlamaForCausalLM(LlamaConfig(**SHAPE)).model.save_pretrained(folder / "without-prefix")
    MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=3)).to(torch.bfloat16).save_pretrained(folder / "moe")
    return {path.name: path for path in folder.iterdir()}


def both(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """What is made of Transformers' own loading, and of ours. Both leave the random state alike."""
    ours = make()
    state = torch.random.get_rng_state()
    monkeypatch.setattr(load, "deferred_files", nullcontext)
    theirs = make()
    assert torch.equal(state, torch.random.get_rng_state())
    return theirs, ours


def assert_same(theirs: Any, ours: Any) -> None:
    assert is_deferred(ours) and not is_deferred(theirs)
    fill(ours)
    for kind in ("named_parameters", "named_buffers"):
        pairs = [dict(getattr(model, kind)(remove_duplicate=False)) for model in (theirs, ours)]
        assert list(pairs[0]) == list(pairs[1])
        for name, one in pairs[0].items():
            other = pairs[1][name]
            assert torch.equal(one, other) and one.dtype == other.dtype, name
            assert (type(one), one.requires_grad) == (type(other), other.requires_grad), name
    shared = [_shared(model) for model in (theirs, ours)]
    assert shared[0] == shared[1]


def _shared(model: Any) -> list[str]:
    once = dict(model.named_parameters())
    return [name for name, _ in model.named_parameters(remove_duplicate=False) if name not in once]


def facts_of(path: str | Path, **asked: Any) -> tuple[ModelConfig, ModelFacts]:
    config = ModelConfig(path=str(path), tokenizer=None if "builtin:" in str(path) else "builtin:tiny-llama")
    known = model_facts(ModelRequest(path=str(path), tokenizer=config.tokenizer, **asked))
    return config, known


def loaded(config: ModelConfig, facts: ModelFacts) -> Any:
    seed_everything(3)
    return load_model(config, facts, deferred=True)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2", "tiny-gpt2", "tiny-t5", "tiny-bart"])
def test_language_models(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, facts = facts_of(f"builtin:{name}")
    assert_same(*both(partial(loaded, config, facts), monkeypatch))


@pytest.mark.parametrize("name", ["tied-t5", "bf16-sharded", "without-prefix", "moe"])
def test_files_that_need_more_than_reading(
    name: str, folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, facts = facts_of(folders[name])
    if name == "without-prefix":  # its head is in no file
        monkeypatch.setattr(load, "_refuse", lambda *_: None)
    assert_same(*both(partial(loaded, config, facts), monkeypatch))


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama", "tiny-gpt2", "tiny-t5", "tiny-bert-classifier"])
def test_classifiers_with_heads_that_are_new_or_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, facts = facts_of(f"builtin:{name}", task="sequence_classification", takes_encoders=True)
    if not facts.labels:
        facts = facts.model_copy(update={"new_labels": ("no", "yes", "perhaps")})
    assert_same(*both(partial(loaded, config, facts), monkeypatch))


@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}])
def test_adapters(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config, facts = facts_of("builtin:tiny-llama")

    def make() -> Any:
        model = loaded(config, facts)
        seed_everything(5)
        return make_trainable(model, facts, LoraAdapter(type="lora", **more))

    assert_same(*both(make, monkeypatch))


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_models_made_of_layers_of_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, facts = facts_of(f"builtin:{name}", layers=(1,))
    assert_same(*both(partial(loaded, config, facts), monkeypatch))


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5"])
def test_a_policy_with_its_reference_and_its_value_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, facts = facts_of(f"builtin:{name}")
    theirs, ours = both(lambda: Policy(loaded(config, facts), 1.0, value_model="separate"), monkeypatch)
    assert [type(module) for module in theirs.modules()] == [type(module) for module in ours.modules()]
    assert_same(theirs, ours)


@pytest.mark.parametrize(("bits", "own"), [("8bit", "mapped_files"), ("4bit", "quantized_when_read")])
def test_quantized_models(
    bits: Quantization, own: str, folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, facts = facts_of(folders["bf16-sharded"], quantization=bits)
    states = []
    for way in (getattr(load, own), nullcontext):
        monkeypatch.setattr(load, own, way)
        model = load_base(config, facts, bits, "no", torch.device("cpu"))
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert list(states[0]) == list(states[1]) and len(states[0]) > len(dict(model.named_parameters()))
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype and torch.equal(tensor, states[1][name]), name


def test_a_head_is_looked_at_without_keeping_weights(folders: Mapping[str, Path]) -> None:
    model = loaded(*facts_of(folders["bf16-sharded"]))
    assert has_plain_head(model)
    assert all(isinstance(parameter, Deferred) for parameter in model.parameters())
    copy = deepcopy(model)
    assert copy.get_output_embeddings().weight is copy.get_input_embeddings().weight


def test_every_type_at_every_place(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = dict(_of_every_type())
    save_file(tensors, tmp_path / "all.safetensors", {"format": "pt"})
    stored = StoredFile(tmp_path / "all.safetensors")
    assert stored.metadata() == {"format": "pt"} and sorted(stored.keys()) == sorted(tensors)
    with safe_open(tmp_path / "all.safetensors", "pt") as file:
        for name, tensor in tensors.items():
            ours, theirs = stored.get_slice(name), file.get_slice(name)
            assert (ours.get_shape(), ours.get_dtype()) == (theirs.get_shape(), theirs.get_dtype())
            whole = ours[...]
            assert (whole.shape, whole.dtype) == (tensor.shape, tensor.dtype)
            bits = [each.contiguous().view(torch.uint8) for each in (_read(whole), tensor)]
            assert torch.equal(*bits)
            assert torch.equal(_read(ours[1:]).float(), tensor[1:].float())


def _read(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor).copy_(tensor)


def _of_every_type() -> Iterator[tuple[str, torch.Tensor]]:
    for number, (name, dtype) in enumerate(DTYPES.items()):
        yield name, (torch.rand(number + 1, 3) * 9).to(dtype)
    yield "empty", torch.empty(0, 4)


def test_what_is_written_to_a_mapped_weight_is_not_in_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    parameter = torch.nn.Linear(1, 1)
    parameter.weight = torch.nn.Parameter(StoredFile(tmp_path / "a.safetensors").get_tensor("a"))
    fill(parameter)
    with torch.no_grad():
        parameter.weight.zero_()
    assert torch.equal(_read(StoredFile(tmp_path / "a.safetensors").get_tensor("a")), torch.ones(3))
