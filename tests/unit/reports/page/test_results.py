"""What a run came to, as tables and headlines: the numbers are those that were measured."""

from __future__ import annotations

from pathlib import Path

from scaleup.artifacts.files import write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.reports.comparison import Column, compare_columns
from scaleup.reports.html import Limits
from scaleup.reports.page.results import card, comparison, evaluation, headline_of, samples
from tests.pages import Page
from tests.unit.reports.test_deployment import measured

ROWS = [{"id": number, "prompt": f"prompt {number} " + "x" * 3000} for number in range(30)]
HITS: dict[str, list[float | None]] = {
    "before": [float(number < 10) for number in range(30)],
    "after": [float(number < 25) for number in range(30)],
}
COLUMNS = [
    Column(name, name, {"accuracy": sum(filter(None, hits)) / 30, "accuracy_interval": [0.1, 0.9]}, {"accuracy": hits})
    for name, hits in HITS.items()
]


def test_a_comparison_and_its_headline() -> None:
    of = compare_columns(COLUMNS, ROWS, num_samples=200, num_shown=12)
    page = Page(comparison(of, Limits()))
    assert page.row("accuracy") == ["0.3333 [0.1, 0.9]", "0.8333 [0.1, 0.9]"]
    ends = of.figures["accuracy"]["after"].difference_interval
    assert ends is not None
    told = f"[{ends[0]:+.4g}, {ends[1]:+.4g}]"
    assert any(row[:4] == ["accuracy", "after", "+0.5", told] for row in page.rows)
    assert "12 of 30 rows" in page.text
    assert "more letters)" in page.text
    short = Page(comparison(of, Limits(), is_whole=False))
    assert "12 of 30 rows" not in short.text
    headline = headline_of(of)
    assert headline is not None
    assert (headline.name, headline.value) == ("accuracy", "0.833 [0.1, 0.9]")
    assert headline.note == f"before: 0.333; difference +0.5 [{ends[0]:+.3g}, {ends[1]:+.3g}]; 30 rows, 95 % intervals"


def test_an_evaluation_that_compares_nothing(tmp_path: Path) -> None:
    figures = {"accuracy": 0.75, "accuracy_interval": [0.5, 1.0], "confusion": {"a": {"a": 1}}}
    write_json(tmp_path / "metrics.json", {"baseline": {"accuracy": 0.25}, "model": figures})
    page = Page(evaluation(RunFolder(tmp_path), None, Limits()))
    assert page.rows == [["metric", "before", "after"], ["accuracy", "0.25", "0.75 [0.5, 1]"]]


def test_a_deployment_card(tmp_path: Path) -> None:
    verdict = {"gain": True, "words": "bytes x 0.50"}
    models = {"model": measured(size=2_000_000), "<half>": {**measured(size=1_000_000, ratio=1.1), "verdict": verdict}}
    write_json(tmp_path / "card.json", {"models": models})
    page = Page(card(RunFolder(tmp_path), Limits()))
    row = page.row("<half>")
    assert row[1] == "1.0"
    assert "33.00 (31.90 to 34.10)" in row
    assert row[-1] == "yes: bytes x 0.50"
    assert "<half>: 33 (31.9 to 34.1) at 1" in page.text
    assert card(RunFolder(tmp_path / "none"), Limits()) == ""


def test_what_was_generated(tmp_path: Path) -> None:
    lines = ['{"id": 0, "prompt": "a", "completion": "<b>"}', '{"id": 1, "prompt": [{"x": 1}], "completion": "c"}']
    (tmp_path / "generations.jsonl").write_text("\n".join(lines))
    page = Page(samples(RunFolder(tmp_path), None, Limits()))
    assert page.rows == [["prompt", "completion"], ["a", "<b>"], ['{"x": 1}', "c"]]
    assert "2 of 2 prompts with answers" in page.text
