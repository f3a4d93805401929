"""The twin of a model is of the same class, with the same tokenizer, and small."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaleup.config.schema import ModelConfig
from scaleup.describe.model import model_facts
from scaleup.describe.twin import make_twin, twin_settings
from scaleup.models.builtin import BUILTIN

ENCODERS = ("tiny-bert",)


@pytest.mark.parametrize("name", [name for name in BUILTIN if name not in ENCODERS])
def test_it_is_of_the_same_family(name: str, tmp_path: Path) -> None:
    """Built-in models are as small as twins: theirs have as many parameters, and the same layout of files."""
    make_twin(ModelConfig(path=f"builtin:{name}"), tmp_path)
    of, twin = model_facts(ModelConfig(path=f"builtin:{name}")), model_facts(ModelConfig(path=str(tmp_path)))
    assert twin.architecture == of.architecture and twin.vocabulary == of.vocabulary
    assert twin.num_parameters == of.num_parameters
    assert (twin.labels, twin.has_chat_template) == (of.labels, of.has_chat_template)


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
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
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
