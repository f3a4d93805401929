from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, AutoTokenizer

from scaleup.errors import ScaleupError
from scaleup.models.from_gguf import convert, split_like
from scaleup.models.sources import materialize

SIZE, HEADS, LAYERS = 32, 2, 1


def write_gguf(path: Path, split: str) -> np.ndarray:
    """A random llama with the built-in tokenizer's bytes and two merges; returns its embeddings."""
    tokenizer = AutoTokenizer.from_pretrained(materialize("builtin:tiny-llama"))
    tokens = [*tokenizer.convert_ids_to_tokens(range(len(tokenizer))), "ĠĠ", "Ġ1"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(SIZE)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * SIZE)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ", "Ġ 1"])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(tokenizer.chat_template)
    shapes = {"token_embd": (len(tokens), SIZE), "output_norm": (SIZE,)}
    shapes |= {f"blk.0.{name}": (SIZE,) for name in ("attn_norm", "ffn_norm")}
    shapes |= {f"blk.0.attn_{name}": (SIZE, SIZE) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (2 * SIZE, SIZE), "blk.0.ffn_up": (2 * SIZE, SIZE), "blk.0.ffn_down": (SIZE, 2 * SIZE)}
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors["token_embd"]


def test_converts_weights_tokenizer_and_template(tmp_path: Path) -> None:
    embeddings = write_gguf(tmp_path / "toy.gguf", "smollm")
    convert(tmp_path / "toy.gguf", tmp_path / "out", "model.path")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert torch.equal(model.get_input_embeddings().weight, torch.from_numpy(embeddings))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer.model_max_length == 128
    assert "<|im_start|>" in tokenizer.chat_template
    assert tokenizer.tokenize("x  12") == ["x", "ĠĠ", "1", "2"]  # GPT-2's own split would make it Ġ, Ġ1, 2


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "toy.gguf", "someones-own")
    with pytest.raises(ScaleupError, match=r"model\.path: its GGUF splits text like 'someones-own'"):
        convert(tmp_path / "toy.gguf", tmp_path / "out", "model.path")


def test_splits_transformers_knows_stay() -> None:
    tokenizer = AutoTokenizer.from_pretrained(materialize("builtin:tiny-llama"))
    before = str(tokenizer.backend_tokenizer.pre_tokenizer)
    for split in ("gpt-2", "qwen2", "llama-bpe", None):
        split_like(tokenizer, split, "model.path")
    assert str(tokenizer.backend_tokenizer.pre_tokenizer) == before
