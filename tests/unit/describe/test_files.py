"""What the headers of a model's files tell before a worker starts: whether they hold every weight, in its shape."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaleup.describe.answer import describe
from scaleup.models import stored
from scaleup.models.sources import materialize
from scaleup.plan.facts import ModelRequest


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(materialize("builtin:tiny-llama"), tmp_path / "copy"))


def refusal(path: Path) -> str:
    """Facts that are known beside it, for other mistakes to be told too."""
    facts = describe(ModelRequest(path=str(path)), None)
    assert facts.num_parameters > 0 and facts.flaw is not None
    return facts.flaw[0]


def test_a_weight_that_is_missing_or_has_another_shape(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    norm = weights.pop("model.norm.weight")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert refusal(copy) == "1 weight of LlamaForCausalLM is not in its files: model.norm.weight"
    save_file({**weights, "model.norm.weight": norm[:32]}, copy / "model.safetensors", {"format": "pt"})
    assert (
        refusal(copy)
        == "1 weight of LlamaForCausalLM has another shape in its files: model.norm.weight ([32], not [64])"
    )


def test_a_file_that_is_not_whole(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "cannot read the weights" in refusal(copy)


def test_no_weight_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(*_: object) -> torch.Tensor:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(stored, "mapped", unread)
    assert describe(ModelRequest(path="builtin:tiny-llama"), None).flaw is None


def test_a_folder_without_weights_may_be_planned_for_another_machine(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert describe(ModelRequest(path=str(copy)), None).flaw is None
