"""This module holds arithmetic and constants that the plan and the workers must agree on: rows, epochs, steps and
sizes."""

from __future__ import annotations

import math
from fractions import Fraction

DEFAULT_BATCH_SIZE = 8
"""Counts the rows of a micro-batch if train.per_device_train_batch_size is not given."""
LOGITS_CHUNK = 256
"""Counts the positions whose logits exist at a time in a fused head (train/head_loss.py)."""


def held_out_rows(num_rows: int, fraction: float) -> int:
    """Returns how many rows of a source `validation_fraction` takes: at least one, and never all."""
    return min(max(1, round(num_rows * fraction)), num_rows - 1)


def epochs_to_rows(epochs: float, num_rows: int) -> int:
    """Returns the number of rows drawn in so many epochs. The last step may be partly empty; no row beyond these is
    drawn."""
    exactly = Fraction(str(epochs))  # 0.07 x 100 is 7 rows, and in floating point a little more
    return max(1, math.ceil(exactly * num_rows))


def rows_to_steps(num_rows: int, global_batch: int) -> int:
    return math.ceil(num_rows / global_batch)
