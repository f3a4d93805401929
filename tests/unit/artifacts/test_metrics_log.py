"""What a run has logged is read while it runs, up to the line that it is writing."""

from __future__ import annotations

from pathlib import Path

from scaleup.artifacts.metrics_log import LAST_BYTES, last_metrics, logged_values


def test_half_a_line_is_none(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert logged_values(file, "loss") == {}
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "eval_loss": 1.0}\n{"step": 3, "lo')
    assert logged_values(file, "loss") == {1: 2.0}
    assert logged_values(file, "eval_loss") == {2: 1.0}
    assert last_metrics(file) == {"step": 2, "loss": 2.0, "eval_loss": 1.0}


def test_a_log_that_is_long_and_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(f'{{"step": {number}, "loss": 1}}' for number in range(LAST_BYTES // 10)) + '\n{"step": ')
    assert last_metrics(file) == {"step": LAST_BYTES // 10 - 1, "loss": 1}
    assert last_metrics(tmp_path / "none") == {}
