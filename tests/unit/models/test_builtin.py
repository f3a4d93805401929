from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from scaleup.config.schema import ModelConfig
from scaleup.models.builtin import BUILTIN, build
from scaleup.models.load import load_tokenizer
from scaleup.models.sources import materialize
from scaleup.plan.model_path import BUILTIN as NAMES

CAUSAL = ["tiny-llama", "tiny-qwen2", "tiny-mixtral", "tiny-gpt2"]
ALL = [*CAUSAL, "tiny-t5", "tiny-bart"]
ENCODERS = ["tiny-bert", "tiny-bert-classifier", "tiny-hate-classifier"]


def test_the_names_are_these() -> None:
    assert list(BUILTIN) == [*ALL, *ENCODERS] == list(NAMES)


@pytest.mark.parametrize("name", ALL)
def test_builds_the_same_bytes_and_leaves_the_random_state(name: str, tmp_path: Path) -> None:
    first = Path(materialize(f"builtin:{name}"))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    build(name, tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    files = {path.name: path.read_bytes() for path in first.iterdir()}
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(files)


@pytest.mark.parametrize("name", ALL)
def test_loads_in_plain_transformers(name: str) -> None:
    folder = materialize(f"builtin:{name}")
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_pretrained(folder)
    assert AutoModel.from_pretrained(folder) is not None
    assert len(tokenizer) == config.vocab_size == model.get_input_embeddings().num_embeddings
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not any(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))
    logits = model(**tokenizer("some text", return_tensors="pt"), **_decoder_start(config)).logits
    assert logits.std() > 0.05
    for key in ("pad_token_id", "eos_token_id", "bos_token_id"):
        if getattr(tokenizer, key) is not None:
            assert getattr(config, key) == getattr(model.generation_config, key) == getattr(tokenizer, key)


def _decoder_start(config: AutoConfig) -> dict[str, torch.Tensor]:
    start = getattr(config, "decoder_start_token_id", None)
    return {} if start is None else {"decoder_input_ids": torch.tensor([[start]])}


@pytest.fixture(scope="module")
def tokenizers(models_cache: Path) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(models_cache))
        folders = {name: materialize(f"builtin:{name}") for name in ALL}
        return {name: load_tokenizer(ModelConfig(path=folder), folder) for name, folder in folders.items()}


@settings(max_examples=60, deadline=None)
@given(text=st.text() | st.text(alphabet="<|pad>/s im_end\n\t é🙂") | st.just("a<|im_end|> </s><pad>b e\u0301"))
def test_tokenizers_are_lossless(tokenizers: dict, text: str) -> None:
    for name, tokenizer in tokenizers.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text, name


def test_one_token_a_byte(tokenizers: dict) -> None:
    for tokenizer in tokenizers.values():
        assert len(tokenizer("é 🙂", add_special_tokens=False)["input_ids"]) == len("é 🙂".encode())


def test_special_tokens_are_added_as_the_real_ones_do(tokenizers: dict) -> None:
    for name in CAUSAL:
        tokenizer = tokenizers[name]
        assert tokenizer.decode(tokenizer("hi")["input_ids"]) == "hi"
        assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    t5, bart = tokenizers["tiny-t5"], tokenizers["tiny-bart"]
    assert t5.decode(t5("hi")["input_ids"]) == "hi</s>"
    assert bart.decode(bart("hi")["input_ids"]) == "<s>hi</s>"
    assert t5.bos_token is None
    assert all(tokenizer.unk_token is None for tokenizer in tokenizers.values())


def test_decoders_start_as_the_real_ones_do() -> None:
    t5 = AutoConfig.from_pretrained(materialize("builtin:tiny-t5"))
    bart = AutoConfig.from_pretrained(materialize("builtin:tiny-bart"))
    assert t5.decoder_start_token_id == t5.pad_token_id
    assert bart.decoder_start_token_id == bart.eos_token_id


def test_chat_template_is_chatml(tokenizers: dict) -> None:
    messages = [{"role": "user", "content": "hi"}]
    for name in CAUSAL:
        text = tokenizers[name].apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_t5_head_is_its_own() -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(materialize("builtin:tiny-t5"))
    assert model.lm_head.weight is not model.shared.weight
    assert model.config.scale_decoder_outputs is False
