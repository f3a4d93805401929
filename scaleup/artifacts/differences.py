"""The folders of two runs go in; by how much their losses and their weights differ comes out.

numpy is imported where weights are read: the control plane does without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaleup.artifacts.metrics_log import logged_lines, logged_values

if TYPE_CHECKING:
    import numpy as np


def losses(run_folder: Path) -> dict[int, float]:
    """Returns a run's training losses by step."""
    return logged_values(run_folder / "metrics.jsonl", "loss")


def largest_loss_difference(one: Path, other: Path) -> float:
    """Returns the largest difference between the training losses of two runs. Raises ValueError unless both have logged
    the same steps."""
    left, right = losses(one), losses(other)
    if not left or left.keys() != right.keys():
        raise ValueError(f"{one.name} logged the steps {_span(left)}, {other.name} {_span(right)}")
    return max(_apart(left[step], right[step]) for step in left)


def largest_relative_loss_difference(one: Path, other: Path) -> float:
    """Returns the largest difference between the training losses of two runs, as a share of those of the first. Raises
    ValueError as `largest_loss_difference` does."""
    largest_loss_difference(one, other)
    left, right = losses(one), losses(other)
    return max(_apart(left[step], right[step]) / abs(left[step] or 1.0) for step in left)


def largest_metric_difference(one: Path, other: Path, leave_out: tuple[str, ...] = ()) -> float:
    """Returns the largest difference between the metrics of two runs, of those greater than 1 as a share of them; but
    for those whose names begin so. Raises ValueError unless both have logged the same steps."""
    lines, others = (logged_lines(run / "metrics.jsonl") for run in (one, other))
    if not lines or [line["step"] for line in lines] != [line["step"] for line in others]:
        raise ValueError(f"{one.name} logged {len(lines)} times, {other.name} {len(others)} times, or other steps")
    largest = 0.0
    for left, right in zip(lines, others, strict=True):
        for name in left.keys() & right.keys():
            if isinstance(left[name], (int, float)) and not name.startswith(leave_out):
                size = max(1.0, abs(left[name]))
                largest = max(largest, _apart(float(left[name]), float(right[name])) / size)
    return largest


def largest_weight_difference(one: Path, other: Path, pattern: str = "model/*model.safetensors") -> float:
    """Returns the largest difference between the final models (or adapters) of two runs. Raises ValueError unless both
    have the same weights by name and shape."""
    left, right = weights(one, pattern), weights(other, pattern)
    if left.keys() != right.keys():
        strangers = sorted(left.keys() ^ right.keys())
        raise ValueError(f"{one.name} and {other.name} do not have the same weights: {', '.join(strangers[:3])}")
    largest = 0.0
    for name, weight in left.items():
        if weight.shape != right[name].shape:
            raise ValueError(f"{name} is {weight.shape} in {one.name}, and {right[name].shape} in {other.name}")
        apart = abs(weight - right[name]).max(initial=0)  # AdaLoRA may leave a rank of 0
        if apart != apart:
            raise ValueError(f"{name} is no number in {one.name} or {other.name}")
        largest = max(largest, float(apart))
    return largest


def weights(run_folder: Path, pattern: str = "model/*model.safetensors") -> dict[str, np.ndarray[Any, Any]]:
    """Returns the weights of a run's final model, or adapter, by name. Raises ValueError where it left none."""
    from safetensors.numpy import load_file

    file = next(iter(sorted(run_folder.glob(pattern))), None)
    if file is None:
        raise ValueError(f"{run_folder.name} left no weights in {run_folder}")
    return load_file(file)


def _apart(one: float, other: float) -> float:
    return abs(one - other) if one == one and other == other else float("inf")


def _span(values: dict[int, float]) -> str:
    return f"{min(values)} to {max(values)}" if values else "of none"
