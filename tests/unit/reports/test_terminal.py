"""Plans and results on a terminal of 80 columns."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scaleup.artifacts.files import write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.plan.types import ComputePlan, Plan
from scaleup.reports.results import show_evaluation
from scaleup.reports.terminal import show_plan, size_text
from tests.golden import GOLDENS

PLANS = sorted((GOLDENS / "plans").rglob("*.json"))
LARGE = 70_553_706_496 * 4
"""Bytes of a model of 70 billion parameters."""


def screen(width: int = 80) -> Console:
    return Console(width=width, file=io.StringIO())


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plan_of(file: Path, **changes: Any) -> Plan:
    return Plan.model_validate(json.loads(file.read_text())).model_copy(update=changes)


def shown(plan: Plan) -> str:
    console = screen()
    show_plan(console, plan)
    text = text_of(console)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    return text


@pytest.mark.parametrize("file", PLANS, ids=lambda file: str(file.relative_to(GOLDENS / "plans").with_suffix("")))
def test_every_plan_fits_80_columns(file: Path) -> None:
    plan = plan_of(file, run_folder=f"/home/somebody/{'a-long-folder/' * 9}{file.stem}")
    text = shown(plan)
    first = text.splitlines()[0]
    assert first == f"plan of {plan.name} ({plan.stage})"
    for row in plan.memory:
        assert row.strategy in text
    for words in ("FLOP", "hours", "tokens per parameter"):
        assert words not in text, f"{words} only with --flops"


def test_a_large_model_on_eight_gpus() -> None:
    """Every part of every strategy at its longest."""
    plan = plan_of(GOLDENS / "plans/ppo/tiny.json")
    group = plan.groups[0].model_copy(update={"num_processes": 8, "device": "cuda", "strategy": "zero3"})
    names = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp2")
    part = {"weights": LARGE, "gradients": LARGE // 3, "optimizer": 2 * LARGE, "reference": LARGE, "buffers": 10**9}
    part |= {"activations": 10**10, "logits": 10**9, "peak": 3 * LARGE, "host": LARGE}
    rows = [plan.memory[0].model_copy(update={**part, "strategy": name}) for name in names]
    large = {"memory": rows, "groups": [group, *plan.groups[1:]], "fitting": ["zero3"], "device_memory": 80 * 2**30}
    text = shown(plan.model_copy(update=large))
    assert "263 GiB" in text and "a rank has 80.0 GiB" in text
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert lines["fits"] == ["no", "no", "no", "no", "yes", "no"]
    assert lines["offloaded"] == ["263", "GiB"] * 6
    assert "a rank of the reward group" in text


def test_a_rate_shows_what_the_run_costs() -> None:
    compute = ComputePlan(
        flops_per_token=10**11, tokens=10**9, total_flops=10**20, teraflops=990.0, utilisation=0.4, hours=8.77
    )
    text = shown(plan_of(GOLDENS / "plans/sft/tiny.json", compute=compute))
    for words in (
        "100,000,000,000 FLOPs per token at data.max_length",
        "8.77 at 40% of 2 x 990",
        "tokens per parameter",
    ):
        assert words in text


def test_a_sum_is_not_called_a_peak() -> None:
    """Where activations are not known."""
    plan = plan_of(GOLDENS / "plans/ppo/tiny.json")
    text = shown(plan)
    assert "activations come on top" in text and "\nsum" in text and "\npeak" not in text


def test_a_folder_stays_whole_above_a_table(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / ("a-long-name-" * 8))
    run.path.mkdir()
    write_json(
        run.path / "metrics.json", {name: {"perplexity": 1234.5678} for name in ("model", "one", "two", "three")}
    )
    run.plan_file.write_text(json.dumps(json.loads((GOLDENS / "plans/sft/tiny.json").read_text())))
    console = screen()
    show_evaluation(console, run)
    text = text_of(console)
    assert text.splitlines()[0] == f"evaluation in {run.path}"
    assert "…" not in text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1536, "1.50 KiB"),
        (2**20 - 1, "1.00 MiB"),
        (10 * 2**20, "10.0 MiB"),
        (15 * 2**30 + 2**29, "15.5 GiB"),
        (LARGE, "263 GiB"),
        (4 * LARGE, "1.03 TiB"),
    ],
)
def test_three_digits(size: int, text: str) -> None:
    assert size_text(size) == text
    assert len(text) <= 8
