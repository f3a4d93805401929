"""What two columns of the same rows differ by: closed forms, and what is written of it."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from scaleup.errors import ScaleupError
from scaleup.reports.comparison import Column, Comparison, Wins, compare_columns, mcnemar, paired_interval, wins
from scaleup.reports.comparison_files import as_csv, as_html, as_json, as_markdown, show_comparison
from tests.pages import Page

HOSTILE = "<script>alert(1)</script> a|b\n[x](http://y) & [bold]"
ROWS: list[dict[str, Any]] = [
    {"id": 0, "prompt": HOSTILE, "reference": "yes"},
    {"id": 1, "prompt": "b", "reference": "no"},
    {"id": 2, "prompt": [{"role": "user", "content": "c"}], "reference": "no"},
]


def column(name: str, hits: list[float | None], bleu: list[float], **more: Any) -> Column:
    known = [hit for hit in hits if hit is not None]
    figures = {
        "rows": 3,
        "accuracy": sum(known) / len(known),
        "accuracy_interval": [0.0, 1.0],
        "bleu": 10.0 * len(name),
        "bleu_signature": "x",
    }
    scores = {"accuracy": hits, "bleu": bleu}
    return Column(name, f"runs/{name}", figures, scores, [HOSTILE, "no", "no"], {"parameters": 7, "MiB": None}, **more)


def compared(**more: Any) -> Comparison:
    one, two = column("one", [0, 1, 0], [1, 2, 3]), column("three", [1, 1, 0], [1, 2, 6], **more)
    return compare_columns([one, two], ROWS, ["accuracy"])


@pytest.mark.parametrize(
    ("lost", "won", "p_value"),
    [
        (6, 16, 0.0525),
        (7, 1, 0.0703),  # airway hyper-responsiveness (Bentur et al. 2009), as in Fagerland et al. 2013, table 4
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 10, 2 / 2**10),
    ],
)
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int, p_value: float) -> None:
    before, after = [1.0] * lost + [0.0] * won + [1.0, 0.0, None], [0.0] * lost + [1.0] * won + [1.0, 0.0, 1.0]
    assert mcnemar(before, after) == pytest.approx(p_value, abs=5e-5)
    assert mcnemar(after, before) == mcnemar(before, after)
    hundreds = [[value and 100 * value for value in values] for values in (before, after)]
    assert mcnemar(*hundreds) == mcnemar(before, after)


def test_mcnemar_is_of_right_and_wrong_alone() -> None:
    assert mcnemar([0, 0.5], [1, 1]) is None and mcnemar([None], [1]) is None


def test_equal_columns_differ_by_nothing() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert paired_interval(values, values, 200) == [0.0, 0.0]
    assert paired_interval([None], [1.0], 200) is None


def test_the_interval_is_that_of_the_rows_differences() -> None:
    """Normal theory; and far narrower than of rows that are not paired."""
    chance = np.random.default_rng(0)
    before = chance.normal(size=400) * 10
    after = before + chance.normal(1.0, 0.5, size=400)
    found = paired_interval(list(before), list(after), 2000)
    error = (after - before).std() / 20
    assert found == pytest.approx([(after - before).mean() + side * 1.96 * error for side in (-1, 1)], abs=error / 4)


def test_rows_that_only_one_column_leaves_out() -> None:
    """The interval is that of the figures' difference, each a mean over the rows that it has."""
    low, high = paired_interval([0.0, 0.0, None], [1.0, None, 1.0], 500) or (0, 0)
    assert (low, high) == (1.0, 1.0)


@pytest.mark.parametrize(("metric", "expected"), [("reward", Wins(2, 1, 1)), ("loss", Wins(1, 1, 2))])
def test_wins_by_what_is_better(metric: str, expected: Wins) -> None:
    assert wins(metric, [1, 1, 1, 1, None], [2, 3, 1, 0, 5]) == expected
    assert expected.rate == (expected.wins + 0.5) / 4
    assert Wins(0, 0, 0).rate is None


def test_a_share_differs_in_points_and_a_corpus_figure_has_its_rows_beside_it() -> None:
    found = compared()
    accuracy, bleu, by_row = (found.figures[name]["three"] for name in ("accuracy", "bleu", "bleu_by_row"))
    assert (accuracy.difference, accuracy.points) == pytest.approx((1 / 3, 100 / 3))
    assert accuracy.difference_interval == [0.0, 1.0] and accuracy.p_value == 1.0
    assert (bleu.difference, bleu.points, bleu.difference_interval) == (20.0, 20.0, None)
    assert (by_row.difference, by_row.p_value) == (pytest.approx(1.0), None)
    assert found.figures["accuracy"]["one"].difference is None
    assert found.wins == {"accuracy": {"three": Wins(1, 2, 0)}}
    assert [(sample.row["id"], sample.scores) for sample in found.samples] == [(0, {"one": 0, "three": 1})]


def test_other_tokens_have_no_common_loss() -> None:
    one, two = (
        Column(name, "", {"loss": 1.0, "accuracy": 1.0}, {"loss": [1.0], "accuracy": [1.0]}, vocabulary=name)
        for name in ("a", "b")
    )
    found = compare_columns([one, two], ROWS[:1])
    assert found.figures["loss"]["b"].difference is None and found.figures["accuracy"]["b"].difference == 0.0
    assert found.notes == ["b: other tokens than a, so that loss, perplexity and kl do not compare"]


def test_rows_that_one_model_leaves_out_are_told() -> None:
    found = compare_columns([column("a", [1, 0, None], [1, 2, 3]), column("b", [1, 0, 1], [1, 2, 3])], ROWS)
    assert found.notes == ["b: leaves out other rows than a in accuracy: each figure is of the rows that its model has"]


def test_what_cannot_be_won_by_is_refused() -> None:
    with pytest.raises(ScaleupError, match=r"--by: 'rouge' has no score of each row .* -> use one of accuracy, bleu"):
        compare_columns([column("a", [1], [1]), column("b", [1], [1])], ROWS[:1], ["rouge"])


def test_html_is_whole_and_shows_what_models_wrote_as_text() -> None:
    page = Page(as_html(compared()))
    assert HOSTILE in page.text
    assert "script" not in {tag for tag, _ in page.tags}
    assert all((attributes.get("href") or "data:").startswith("data:") for _, attributes in page.tags), "all is inside"


def test_markdown_tables_keep_their_cells() -> None:
    text = as_markdown(compared())
    assert "<script" not in text and "[x](" not in text
    for table in (part.splitlines() for part in text.split("\n\n") if part.startswith("|")):
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_csv_has_a_line_a_figure() -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(compared()))))
    found = {(line["metric"], line["column"]): line for line in lines}
    assert float(found["accuracy", "three"]["points"]) == pytest.approx(100 / 3)
    assert found["parameters", "one"]["value"] == "7" and found["MiB", "one"]["value"] == ""


def test_json_and_terminal_have_all_of_it() -> None:
    told = json.loads(json.dumps(as_json(compared())))
    assert told["wins"]["accuracy"]["three"] == {"wins": 1, "ties": 2, "losses": 0, "rate": pytest.approx(2 / 3)}
    assert told["samples"][0]["answers"]["three"] == HOSTILE
    console = Console(width=200, record=True, markup=False, file=io.StringIO())
    show_comparison(console, compared())
    shown = console.export_text()
    assert all(word in shown for word in ("McNemar", "win rate", "[bold]", "parameters", "bleu_by_row"))
