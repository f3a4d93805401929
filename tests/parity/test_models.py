"""What `scaleup.models` loads is what plain transformers loads."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from scaleup.config.schema import ModelConfig
from scaleup.describe.model import model_facts
from scaleup.models.builtin import BUILTIN
from scaleup.models.load import load_model, load_tokenizer


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


CLASSIFIERS = [name for name in BUILTIN if name.endswith("-classifier")]
LANGUAGE_MODELS = [name for name in BUILTIN if name not in (*CLASSIFIERS, "tiny-bert")]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_scores_what_transformers_scores(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    config = ModelConfig(path=f"builtin:{name}")
    facts = model_facts(config)
    ours = load_model(config, facts)
    theirs = AutoModelForSequenceClassification.from_pretrained(facts.location)
    batch = load_tokenizer(config, facts.location)(
        ["one row", "a longer row of text"], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        assert torch.equal(ours(**batch).logits, theirs(**batch).logits)
    assert list(facts.labels) == list(theirs.config.id2label.values())


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_loads_what_transformers_loads(name: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    config = ModelConfig(path=f"builtin:{name}")
    facts = model_facts(config)
    auto = AutoModelForSeq2SeqLM if facts.task == "seq2seq_lm" else AutoModelForCausalLM
    ours, theirs = load_model(config, facts), auto.from_pretrained(facts.location)

    batch = load_tokenizer(config, facts.location)(
        ["one row", "a longer row of text"], return_tensors="pt", padding=True
    )
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        mine, plain = ours(**batch, labels=labels), theirs(**batch, labels=labels)
    assert torch.equal(mine.logits, plain.logits)
    assert torch.equal(mine.loss, plain.loss)

    assert type(ours).__name__ == facts.architecture
    assert facts.num_parameters == sum(parameter.numel() for parameter in theirs.parameters())
    trainable = sum(parameter.numel() for parameter in theirs.parameters() if parameter.requires_grad)
    assert facts.num_trainable_parameters == trainable
    assert facts.vocab_size == plain.logits.shape[-1]
