"""Metrics of classifiers: what scikit-learn 1.9.1 and SciPy give for the same predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scaleup.data.tokenization import LabelledTokens, TargetTokens
from scaleup.evaluation.classification import class_metrics, matthews, ranks, scalars
from scaleup.records.labels import Targets

IDS = np.ones(1, np.int32)
TRUE, PREDICTED = [0, 1, 2, 2, 1, 0, 0, 1, 2, 0], [0, 2, 2, 1, 1, 0, 1, 1, 2, 0]


def several(rows):
    return [TargetTokens(IDS, np.array(row, np.float32)) for row in rows]


def test_one_label():
    logits = np.eye(4)[PREDICTED]
    found = class_metrics(logits, [LabelledTokens(IDS, label) for label in TRUE], Targets(("a", "b", "c", "unused")))
    assert found["rows"] == 10
    assert found["loss"] == pytest.approx(float(F.cross_entropy(torch.tensor(logits), torch.tensor(TRUE))))
    assert [found[key] for key in ("accuracy", "f1_macro", "f1_micro", "matthews")] == pytest.approx(
        [0.7, 0.6984126984126983, 0.7, 0.5606060606060606]
    )
    assert found["confusion"]["a"] == {"a": 3, "b": 1, "c": 0, "unused": 0}
    assert "confusion" not in scalars(found)


def test_several_labels():
    logits = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]]) - 0.5
    true = [[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]]
    found = class_metrics(logits, several(true), Targets(("a", "b", "c"), "multi_label"))
    assert [found[key] for key in ("accuracy", "f1_macro", "f1_micro")] == pytest.approx(
        [0.5, 0.5555555555555555, 0.6666666666666666]
    )
    wanted = F.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(true).double())
    assert found["loss"] == pytest.approx(float(wanted))


def test_numbers():
    true, predicted = [1.0, 2.0, 2.0, 4.0, 0.5], [0.9, 2.5, 1.0, 3.0, 1.0]
    found = class_metrics(np.array(predicted)[:, None], several([[one] for one in true]), Targets(("x",), "regression"))
    assert [found[key] for key in ("mse", "mae", "pearson", "spearman")] == pytest.approx(
        [0.502, 0.62, 0.8327759027217359, 0.7631578947368421]
    )
    assert found["loss"] == pytest.approx(found["mse"])
    flat = class_metrics(np.ones((5, 1)), several([[one] for one in true]), Targets(("x",), "regression"))
    assert flat["pearson"] is flat["spearman"] is None


def test_equal_values_share_their_rank():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]


def test_one_class_alone_correlates_with_nothing():
    assert matthews(np.array([[3, 2], [0, 0]])) == 0
