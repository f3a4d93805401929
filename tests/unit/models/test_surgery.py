"""What is cut: parts that add nothing go without a trace in the logits, and the rest is an ordinary model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    RobertaConfig,
    SmolLM3Config,
    T5Config,
)

from scaleup.errors import ScaleupError
from scaleup.models.architecture import architecture_of
from scaleup.models.surgery import HeadDims, keep_head_dim, keep_intermediate, keep_kv_groups, keep_layers

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SHAPE | {"num_key_value_heads": 3}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
T5_SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 48,
    "d_kv": 10,
    "d_ff": 40,
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_heads": 6,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
CAUSAL: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**GROUPED, attention_bias=True),
    "qwen2": lambda: Qwen2Config(**GROUPED, layer_types=SLIDING, use_sliding_window=True, sliding_window=3),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=10),
    "mistral": lambda: MistralConfig(**GROUPED),
    "gemma3_text": lambda: Gemma3TextConfig(**GROUPED, head_dim=10, layer_types=SLIDING, sliding_window=3),
    "smollm3": lambda: SmolLM3Config(**GROUPED, no_rope_layers=[1, 1, 0, 1]),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2Config(vocab_size=97, n_embd=48, n_layer=4, n_head=6, n_positions=64, n_inner=40),
    "bert": lambda: BertConfig(**SHAPE),
    "roberta": lambda: RobertaConfig(**SHAPE),
    "t5": lambda: T5Config(**T5_SHAPE),
    "t5-gated": lambda: T5Config(**T5_SHAPE, feed_forward_proj="gated-gelu"),
}
ALL = CAUSAL | OTHERS
T5S = ("t5", "t5-gated")


def auto_class(config: Any) -> Any:
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    return AutoModel if config.model_type in ("bert", "roberta") else AutoModelForCausalLM


def made(name: str) -> Any:
    config = ALL[name]()
    torch.manual_seed(1)
    model = auto_class(config).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that nothing is small, biases and norms included
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def outputs(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    extra = {"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, **extra)[0]


def assert_ordinary(model: Any, folder: Path) -> None:
    """Plain Transformers gives the same logits, and the cache of generation fits."""
    model.save_pretrained(folder)
    again = auto_class(model.config).from_pretrained(folder).eval()
    torch.testing.assert_close(outputs(again), outputs(model))
    assert {name: tuple(p.shape) for name, p in again.named_parameters()} == {
        name: tuple(p.shape) for name, p in model.named_parameters()
    }
    if model.config.model_type not in ("bert", "roberta"):
        options: dict[str, Any] = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
        ids = torch.tensor([[5, 6, 7, 8, 9]])
        with_cache, without = (model.generate(ids, use_cache=use, **options) for use in (True, False))
        assert torch.equal(with_cache, without)


def silence(*linears: Any) -> None:
    with torch.no_grad():
        for linear in linears:
            for parameter in linear.parameters():
                parameter.zero_()


@pytest.mark.parametrize("name", ALL)
def test_a_layer_that_adds_nothing_goes_without_changing_logits(name: str, tmp_path: Path) -> None:
    model = made(name)
    stacks = architecture_of(model).stacks
    for stack in stacks:
        if name in ("bert", "roberta"):  # normed after each sum: no layer of theirs adds nothing
            continue
        block = stack.blocks[1]
        for path in ("self_attn.o_proj", "mlp.down_proj", "attn.c_proj", "mlp.c_proj"):
            if path in {key for key, _ in block.named_modules()}:
                silence(block.get_submodule(path))
        for key, module in block.named_modules():
            if key.endswith(("Attention.o", "DenseReluDense.wo")) or "post_feedforward_layernorm" in key:
                silence(module)
            if name == "gemma3_text" and key == "post_attention_layernorm":
                silence(module)
    before = outputs(model)
    keep_layers(model, {stack.name: [i for i in range(len(stack.blocks)) if i != 1] for stack in stacks})
    if name not in ("bert", "roberta"):
        torch.testing.assert_close(outputs(model), before)
    for stack in architecture_of(model).stacks:
        numbers = [
            {m.layer_idx for m in block.modules() if isinstance(getattr(m, "layer_idx", None), int)}
            for block in stack.blocks
        ]
        assert numbers == [{place} for place in range(len(stack.blocks))]
    assert_ordinary(model, tmp_path)


def test_what_a_config_says_of_each_layer_goes_with_it() -> None:
    model = made("qwen2")
    keep_layers(model, [3, 0])
    assert model.config.layer_types == [SLIDING[0], SLIDING[3]]
    assert model.config.num_hidden_layers == 2
    model = made("smollm3")
    keep_layers(model, [0, 2, 3])
    assert model.config.no_rope_layers == [1, 0, 1]


@pytest.mark.parametrize("name", T5S)
def test_t5_keeps_its_relative_positions_when_its_first_layer_goes(name: str, tmp_path: Path) -> None:
    model = made(name)
    tables = [stack.block[0].layer[0].SelfAttention.relative_attention_bias for stack in (model.encoder, model.decoder)]
    keep_layers(model, {"encoder": [1, 3], "decoder": [2]})
    assert (model.config.num_layers, model.config.num_decoder_layers) == (2, 1)
    for stack, table in zip((model.encoder, model.decoder), tables, strict=True):
        assert stack.block[0].layer[0].SelfAttention.relative_attention_bias is table
    assert_ordinary(model, tmp_path)


@pytest.mark.parametrize("name", ALL)
def test_mlp_columns_that_add_nothing_go_without_changing_logits(name: str, tmp_path: Path) -> None:
    model = made(name)
    draw = torch.Generator().manual_seed(3)
    kept = [torch.randperm(40, generator=draw)[:28] for _ in architecture_of(model).layers]
    for layer, index in zip(architecture_of(model).layers, kept, strict=True):
        gone = torch.ones(40, dtype=torch.bool)
        gone[index] = False
        with torch.no_grad():
            weight = layer.mlp.out.weight
            (weight if name == "gpt2" else weight.T)[gone] = 0
    before = outputs(model)
    keep_intermediate(model, kept)
    torch.testing.assert_close(outputs(model), before)
    assert architecture_of(model).intermediate_size == 28
    assert_ordinary(model, tmp_path)


@pytest.mark.parametrize("name", [*CAUSAL, *T5S])
def test_heads_that_add_nothing_go_without_changing_logits(name: str, tmp_path: Path) -> None:
    model = made(name)
    found = architecture_of(model)
    new = found.num_key_value_heads - found.num_key_value_heads // 3
    draw = torch.Generator().manual_seed(4)
    own = {stack.name: torch.randperm(found.num_key_value_heads, generator=draw)[:new] for stack in found.stacks}
    kept = []
    for stack in found.stacks:
        for layer in stack.layers:
            for attention in layer.attentions:
                mine = torch.randperm(found.num_key_value_heads, generator=draw)[:new]
                kept.append(own[stack.name] if name in T5S and not attention.is_cross else mine)
                gone = torch.ones(found.num_key_value_heads, dtype=torch.bool)
                gone[kept[-1]] = False
                columns = gone.repeat_interleave(attention.out.weight.shape[1] // len(gone))
                with torch.no_grad():
                    attention.out.weight[:, columns] = 0
    before = outputs(model)
    keep_kv_groups(model, kept)
    torch.testing.assert_close(outputs(model), before)
    assert architecture_of(model).num_key_value_heads == new
    assert_ordinary(model, tmp_path)


@pytest.mark.parametrize("name", T5S)
def test_features_of_heads_that_add_nothing_go_without_changing_logits(name: str, tmp_path: Path) -> None:
    model = made(name)
    found = architecture_of(model)
    draw = torch.Generator().manual_seed(5)
    kept = []
    for attention in found.attentions:
        dims = [torch.stack([torch.randperm(10, generator=draw)[:6] for _ in range(6)]) for _ in range(2)]
        kept.append(HeadDims(*dims))
        gone = [torch.ones(6, 10, dtype=torch.bool).scatter(1, index, False).flatten() for index in dims]
        with torch.no_grad():
            attention.query.weight[gone[0]] = 0
            attention.out.weight[:, gone[1]] = 0
    before = outputs(model)
    keep_head_dim(model, kept)
    torch.testing.assert_close(outputs(model), before)
    assert model.config.d_kv == 6
    assert_ordinary(model, tmp_path)


def test_all_at_once(tmp_path: Path) -> None:
    model = made("t5-gated")
    keep_layers(model, [0, 2])
    keep_intermediate(model, [torch.arange(20)] * 4)
    keep_kv_groups(model, [torch.tensor([0, 5])] * 6)
    keep_head_dim(model, [HeadDims(torch.tensor([[0, 3], [1, 9]]), torch.tensor([[4, 5], [9, 0]]))] * 6)
    assert_ordinary(model, tmp_path)


SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (lambda model: None, 134_515_008),
        (lambda model: keep_layers(model, range(20)), 99_114_048),
        (lambda model: keep_intermediate(model, [torch.arange(1280)] * 30), 121_243_968),
        (lambda model: keep_intermediate(model, [torch.arange(1024)] * 30), 107_972_928),
        (lambda model: keep_kv_groups(model, [torch.arange(2)] * 30), 125_667_648),
    ],
)
def test_parameters_of_a_model_without_storage(cut: Callable[[Any], None], expected: int) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SMOLLM2))
    model.tie_weights()
    cut(model)
    assert model.num_parameters() == expected


@pytest.mark.parametrize("config", [BartConfig, Qwen3MoeConfig, Olmo2Config])
def test_architectures_that_are_not_known(config: Any) -> None:
    small = config(**SHAPE) if config is not BartConfig else BartConfig(vocab_size=97, d_model=48)
    with torch.device("meta"):
        model = auto_class(small).from_config(small)
    with pytest.raises(ScaleupError, match=type(model).__name__):
        architecture_of(model)


@pytest.mark.parametrize(
    ("name", "cut", "match"),
    [
        ("llama", lambda model: keep_layers(model, []), "layers: must be distinct"),
        ("llama", lambda model: keep_layers(model, [0, 0]), "layers: must be distinct"),
        ("llama", lambda model: keep_layers(model, [4]), "from 0 to 3"),
        ("llama", lambda model: keep_intermediate(model, [torch.arange(8)] * 3), "equally many for each of 4"),
        (
            "llama",
            lambda model: keep_intermediate(model, [torch.arange(8)] * 3 + [torch.arange(9)]),
            "equally many",
        ),
        ("llama", lambda model: keep_head_dim(model, []), "rotary"),
        ("gpt2", lambda model: keep_kv_groups(model, []), "hidden width divided"),
        (
            "t5",
            lambda model: keep_kv_groups(model, [torch.arange(2)] + [torch.arange(1, 3)] * 9),
            "share a relative bias",
        ),
    ],
)
def test_what_is_no_choice(name: str, cut: Callable[[Any], None], match: str) -> None:
    model = made(name)
    before = outputs(model)
    with pytest.raises(ValueError, match=match):
        cut(model)
    assert torch.equal(outputs(model), before)


def test_weights_stay_frozen_and_in_their_type() -> None:
    model = made("llama").to(torch.bfloat16).requires_grad_(False)
    keep_intermediate(model, [torch.arange(8)] * 4)
    found = architecture_of(model).layers[0].mlp.out.weight
    assert not found.requires_grad and found.dtype == torch.bfloat16
