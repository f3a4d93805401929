"""A student that starts as some layers of a model: planned, loaded and saved as an ordinary model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scaleup.config.stages.distill import EveryLayer
from scaleup.describe.model import model_facts
from scaleup.errors import ScaleupError
from scaleup.models.load import load_model
from scaleup.plan.facts import ModelRequest


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_facts_and_model_agree(name: str, own_cache: None, tmp_path: Path) -> None:
    asked = ModelRequest(path=f"builtin:tiny-{name}", layers=(1,))
    facts = model_facts(asked)
    assert facts.layers is not None and set(facts.layers.values()) == {(1,)}
    assert facts.num_layers == 1
    model = load_model(asked, facts).eval()
    assert sum(p.numel() for p in model.parameters()) == facts.num_parameters
    whole = model_facts(ModelRequest(path=asked.path))
    assert facts.num_parameters < whole.num_parameters and whole.num_layers == 2

    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    ids = torch.arange(3, 12)[None]
    inputs = {"decoder_input_ids": ids} if name == "t5" else {}
    with torch.no_grad():
        one, other = (each(input_ids=ids, **inputs).logits for each in (model, again))
    assert torch.equal(one, other)


def test_every_so_many(own_cache: None) -> None:
    facts = model_facts(ModelRequest(path="builtin:tiny-t5", layers=EveryLayer(every=2)))
    assert facts.layers == {"encoder": (0,), "decoder": (0,)}


@pytest.mark.parametrize("layers", [(2,), (0, 0)])
def test_layers_that_are_not_there(layers: tuple[int, ...], own_cache: None) -> None:
    with pytest.raises(ScaleupError, match=r"distill\.student_layers"):
        model_facts(ModelRequest(path="builtin:tiny-llama", layers=layers))
