"""What `make bench` runs exists; its page and its check say what the measures are; it really measures."""

from __future__ import annotations

import ast
import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench, results
from tests.conftest import REPOSITORY

RATES = results.measure("tokens", "rate", "tokens/s", [(20.0, 10.0), (21.0, 10.0), (22.0, 10.0)])
BYTES = results.measure("memory", "memory", "MiB", [(50.0, 100.0), (50.0, 101.0), (51.0, 100.0)])


def row(*measures: results.Record, **more: Any) -> results.Record:
    at = {"machine": "a machine", "cores": 2, "commit": "abc", "versions": {"torch": "2"}, "others": 0.25}
    known = {"about": "One beside another.", "command": "benchmarks/x.py", "date": "2026-12-01 04:00 UTC"}
    return {**known, "seconds": 90.0, "conditions": at, "measures": list(measures), **more}


def scaled(measure: results.Record, factor: float) -> results.Record:
    """The measure with our side, and so the ratio, so many times as large."""
    ours = [factor * value for value in measure["ours"]]
    return results.measure(
        measure["name"], measure["kind"], measure["unit"], list(zip(ours, measure["theirs"], strict=True))
    )


def options_of(script: Path) -> set[str]:
    """The options that its source adds to a parser."""
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    added = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    return {call.args[0].value for call in added if isinstance(call.args[0], ast.Constant)}


@pytest.mark.parametrize("comparison", bench.COMPARISONS, ids=lambda each: each.name)
def test_a_comparison_has_its_script_its_options_and_its_page(comparison: bench.Comparison) -> None:
    script, *words = comparison.command.split()
    file = REPOSITORY / "benchmarks" / script
    assert {word for word in words if word.startswith("-")} | {"--json"} <= options_of(file)
    assert comparison.repeats >= 3 and comparison.measures
    assert {each.kind for each in comparison.measures} <= set(results.KINDS)
    for link in re.findall(r"\]\(([^)#]+)", comparison.about):
        assert (REPOSITORY / "benchmarks" / link).is_file()


def test_every_recorded_row_is_of_a_comparison_and_the_page_is_made_of_them() -> None:
    recorded = results.read(bench.RESULTS)
    assert recorded
    assert results.render(recorded, [each.name for each in bench.COMPARISONS]) == bench.PAGE.read_text(
        encoding="utf-8"
    ), "make bench writes both"
    commands = {each.name: f"benchmarks/{each.command}" for each in bench.COMPARISONS}
    assert {name: row["command"] for name, row in recorded.items()}.items() <= commands.items(), "measure it again"


def test_the_page_has_medians_spreads_and_what_was_not_measured() -> None:
    rows = {
        "one": row(RATES, {"name": "liger", "skipped": "not installed"}),
        "two": row(skipped="trl is not installed"),
    }
    page = results.render(rows, [*rows, "three"])
    assert (
        "| [one](#one) | tokens, tokens/s | 10.0 | 21.0 | **2.10 (2.00 to 2.20)** | ours / theirs | 3 | 2026-12-01 |"
        in page
    )
    assert "| [one](#one) | liger: not measured: not installed |" in page
    assert "| [two](#two) | not measured: trl is not installed |" in page
    assert "| three | not measured so far |" in page
    assert "a machine, 2 cores, scaleup abc, torch 2. It took 1.5 minutes; other processes used 0.25 cores" in page
    assert len({line.count("|") for line in page.splitlines() if line.startswith("| ")}) == 1


def test_a_ratio_of_seconds_is_how_many_times_as_fast_we_are() -> None:
    assert results.measure("step", "seconds", "s", [(2.0, 5.0)])["ratios"] == [2.5]
    assert results.measure("memory", "memory", "MiB", [(2.0, 5.0)])["ratios"] == [0.4]


@pytest.mark.parametrize(
    ("measure", "factor", "said"),
    [
        (RATES, 1.0, "within the spread"),
        (RATES, 1.15, "within the spread"),  # 2.30 to 2.53, where 2.20 and its tenth are 2.42
        (RATES, 1.3, "better"),
        (RATES, 0.7, "WORSE"),
        (BYTES, 1.02, "within the spread"),
        (BYTES, 1.1, "WORSE"),
        (BYTES, 0.9, "better"),
    ],
)
def test_the_check_calls_other_what_left_both_spreads(measure: results.Record, factor: float, said: str) -> None:
    verdicts = results.check(row(measure), row(scaled(measure, factor)))
    assert all(said in sentence and is_well == (said == "within the spread") for sentence, is_well in verdicts)
    assert len(verdicts) == (2 if measure is BYTES else 1), "of memory our bytes are compared too"


def test_the_check_of_a_plan_wants_it_near_to_what_is() -> None:
    planned = results.measure("peak", "plan", "bytes", [(101.0, 100.0)])
    ((sentence, is_well),) = results.check(row(planned), row(scaled(planned, 0.9)))
    assert "WORSE" in sentence and not is_well


def test_the_check_does_not_look_at_seconds_but_at_their_ratio() -> None:
    slow = results.measure("step", "seconds", "s", [(1.0, 2.0)])
    fast = results.measure("step", "seconds", "s", [(10.0, 20.0)])
    assert results.check(row(slow), row(fast)) == [("step: ratio 2.00, recorded 2.00: within the spread", True)]


def test_the_check_misses_what_is_gone() -> None:
    recorded = row(RATES, BYTES)
    assert results.check(recorded, row(RATES))[-1] == ("memory: is gone: it is not measured any more", False)
    assert results.check(recorded, row(skipped="trl is not installed")) == [("is gone: trl is not installed", False)]
    liger = {"name": "liger", "skipped": "not installed"}
    assert results.check(row(liger), row(liger)) == [("liger: not installed", True)]


def test_measures_are_read_by_case_and_side() -> None:
    comparison = bench.Comparison("x", "", "x.py", (bench.both("time", "seconds", "s", "seconds"),))
    rows = [{"case": "a", "theirs": {"seconds": 3}, "ours": {"seconds": 1}}, {"case": "b", "skipped": "gone"}]
    assert bench.measures_of(comparison, [rows, copy.deepcopy(rows)]) == [
        results.measure("time, a", "seconds", "s", [(1.0, 3.0), (1.0, 3.0)]),
        {"name": "b", "skipped": "gone"},
    ]


@pytest.mark.slow
def test_a_comparison_measured_twice_agrees(tmp_path: Path) -> None:
    """By the quickest, whose sides take turns rollout by rollout."""
    file = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks.bench", "grpo", "--results", str(file)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    assert "| [grpo](#grpo) | time of a rollout, s |" in (tmp_path / "RESULTS.md").read_text()
    recorded = file.read_text()
    again = subprocess.run([*command, "--check"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stdout.count("within the spread") == 3, again.stdout
    assert file.read_text() == recorded, "a check writes nothing"
    assert json.loads(recorded)["grpo"]["conditions"]["versions"]["torch"]
