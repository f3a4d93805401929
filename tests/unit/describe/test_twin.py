"""The twin of a model is of the same class, with the same tokenizer, and small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaleup.config.schema import ModelConfig
from scaleup.describe.model import model_facts
from scaleup.describe.twin import make_twin, twin_settings
from scaleup.models.builtin import BUILTIN
from scaleup.plan.facts import ModelRequest


@pytest.mark.parametrize("name", BUILTIN)
def test_it_is_of_the_same_family(name: str, tmp_path: Path) -> None:
    """Built-in models are as small as twins but for their heads, which T5 counts its positions by."""
    make_twin(ModelConfig(path=f"builtin:{name}"), tmp_path)
    asked = {"takes_encoders": True}
    of = model_facts(ModelRequest(path=f"builtin:{name}", **asked))
    twin = model_facts(ModelRequest(path=str(tmp_path), **asked))
    assert twin.architecture == of.architecture and twin.vocabulary == of.vocabulary
    assert abs(twin.num_parameters - of.num_parameters) <= 0.05 * of.num_parameters
    assert (twin.labels, twin.has_chat_template) == (of.labels, of.has_chat_template)


def test_a_reward_model_is_used_as_the_real_one_is(tmp_path: Path) -> None:
    """It has as many scores, and the file that says what it reads lies beside it."""
    real = tmp_path / "real"
    make_twin(ModelConfig(path="builtin:tiny-bert-classifier"), real)
    (real / "reward.json").write_text('{"template": "{response}", "std": 2.0}')
    make_twin(ModelConfig(path=str(real), task="sequence_classification"), tmp_path / "twin")
    assert (tmp_path / "twin" / "reward.json").read_text() == (real / "reward.json").read_text()
    assert model_facts(ModelRequest(path=str(tmp_path / "twin"))).labels == ("negative", "positive")


def test_dropout_is_as_asked(tmp_path: Path) -> None:
    for dropout in (0.0, 0.1):
        make_twin(ModelConfig(path="builtin:tiny-llama"), tmp_path / str(dropout), dropout=dropout)
        written = json.loads((tmp_path / str(dropout) / "config.json").read_text())
        assert written["attention_dropout"] == dropout
    one, other = ((tmp_path / str(each) / "model.safetensors").read_bytes() for each in (0.0, 0.1))
    assert one == other


def test_large_sizes_become_small_and_fit_together() -> None:
    settings = {
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "layer_types": ["full_attention"] * 30,
        "attention_dropout": 0.1,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "n_inner": None,
    }
    assert twin_settings(settings) == {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "layer_types": ["full_attention"] * 2,
        "attention_dropout": 0.0,
    }


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (2, 1), (3, 3), (32, 8), (8, 8)])
def test_heads_divide_the_width_and_groups_the_heads(heads: int, groups: int) -> None:
    made = twin_settings({"num_attention_heads": heads, "num_key_value_heads": groups, "hidden_size": 96})
    assert made["hidden_size"] % made["num_attention_heads"] == 0
    assert made["num_attention_heads"] % made["num_key_value_heads"] == 0
    assert (made["num_key_value_heads"] == made["num_attention_heads"]) == (heads == groups)
