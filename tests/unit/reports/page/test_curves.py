"""Charts of what a run has logged, and of nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaleup.reports.html import Limits
from scaleup.reports.page.curves import curves
from scaleup.reports.training import read_series, training_seconds
from tests.pages import Page


def test_logs_are_read_as_far_as_they_are_whole(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "loss": 2.0, "ok": true}', '{"step": 2, "loss": NaN}', "[]", '{"loss": 1}', '{"step": 3, "lo']
    file.write_text("\n".join(lines))
    assert read_series(file) == {"step": [(1, 1), (2, 2)], "loss": [(1, 2.0)]}
    assert read_series(tmp_path / "none") == {}


def test_seconds_of_training() -> None:
    tokens = [(10.0, 100.0), (20.0, 300.0)]
    assert training_seconds({"num_tokens": tokens, "tokens_per_second": [(10.0, 50.0), (20.0, 100.0)]}) == 4
    assert training_seconds({"time/rollout": [(1.0, 2.5), (2.0, 1.5)]}) == 4
    assert training_seconds({"time/rollout": [(2.0, 1.5)]}) is None, "the first rollout was not logged"
    assert training_seconds({}) is None


def test_known_figures_come_first_and_all_are_numbers_too() -> None:
    series = {
        "grad_norm": [(1.0, 0.5), (2.0, 0.4)],
        "loss": [(1.0, 3.0), (2.0, 1.0)],
        "eval_loss": [(2.0, 1.25)],
        "eval_accuracy": [(2.0, 0.5)],
        "num_tokens": [(1.0, 7.0)],
    }
    page = Page(curves(series, "step", Limits(), None, "r"))
    titles = [each["aria-label"].partition(".")[0] for name, each in page.tags if name == "svg" and each["aria-label"]]
    assert titles == ["Loss", "grad_norm", "eval_accuracy"]
    assert "2 more figures" in page.text
    assert page.row("loss") == ["2", "3", "1", "1", "3"]
    assert page.row("eval_loss") == ["1", "1.25", "1.25", "1.25", "1.25"]


@pytest.mark.parametrize("count", [1, 500])
def test_many_figures_say_how_many_are_shown(count: int) -> None:
    series = {f"figure_{number}": [(1.0, 1.0)] for number in range(count)}
    page = Page(curves(series, "step", Limits(), None, "r"))
    assert sum(name == "svg" for name, _ in page.tags) == min(count, Limits().charts)
    assert ("40 of 500 further figures" in page.text) == (count == 500)
    assert json.dumps(page.text)
