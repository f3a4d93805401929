"""How far two runs are apart is read from their folders; what cannot be compared is never equal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scaleup.artifacts.differences import (
    largest_loss_difference,
    largest_relative_loss_difference,
    largest_weight_difference,
)


def left(folder: Path, losses: list[float], **weights: list[float]) -> Path:
    """A run folder with these losses and weights."""
    (folder / "model").mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    arrays = {name: np.array(values, np.float32) for name, values in weights.items()}
    save_file(arrays, folder / "model/model.safetensors")
    return folder


def test_the_largest_one_counts(tmp_path: Path) -> None:
    one = left(tmp_path / "one", [4.0, 2.0], a=[1, 2], b=[0.5])
    other = left(tmp_path / "other", [4.0, 2.5], a=[1, 1.75], b=[0.5])
    assert largest_loss_difference(one, other) == 0.5
    assert largest_relative_loss_difference(one, other) == 0.25
    assert largest_weight_difference(one, other) == 0.25
    assert largest_weight_difference(one, one) == largest_loss_difference(one, one) == 0


def test_what_is_no_number_is_not_equal_to_itself(tmp_path: Path) -> None:
    one = left(tmp_path / "one", [1.0], a=[float("nan")])
    with pytest.raises(ValueError, match="a is no number"):
        largest_weight_difference(one, one)


@pytest.mark.parametrize(
    ("losses", "weights", "what"),
    [
        ([1.0], {"a": [1.0]}, "logged the steps 1 to 2, other 1 to 1"),
        ([1.0, 1.0], {"b": [1.0]}, "do not have the same weights: a, b"),
        ([1.0, 1.0], {"a": [1.0, 2.0]}, r"a is \(1,\) in one, and \(2,\) in other"),
    ],
)
def test_what_cannot_be_compared(
    losses: list[float], weights: dict[str, list[float]], what: str, tmp_path: Path
) -> None:
    one, other = left(tmp_path / "one", [1.0, 1.0], a=[1.0]), left(tmp_path / "other", losses, **weights)
    with pytest.raises(ValueError, match=what):
        largest_loss_difference(one, other)
        largest_weight_difference(one, other)


def test_a_run_that_left_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="logged the steps of none"):
        largest_loss_difference(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="left no weights"):
        largest_weight_difference(tmp_path, tmp_path)
