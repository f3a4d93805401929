"""Every cell of the compatibility table that is ok: it learns, it changes what it should and nothing else, and in
float32 it is the same training as one process's."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from scaleup.plan.compat import Cell, table
from scaleup.plan.stages import planner_named
from tests.distributed.test_runtime import python

pytestmark = pytest.mark.slow
OTHERS = ("t5", "bert")
Trial = tuple[Cell, str]
HEAD = "*.modules_to_save.default.*"
"""What is trained beside a LoRA on a reward model or a classifier."""
TRAINED = {
    "full": ["*"],
    "selective": ["*.1.*", "*norm*"],
    "lora": ["*.lora_[AB].*", HEAD],
    "dora": ["*.lora_[AB].*", "*.lora_magnitude_vector.*"],
    "ia3": ["*.ia3_l.*"],
    "adalora": ["*.lora_[ABE].*"],
    "prompt_tuning": ["prompt_encoder.*"],
    "prefix": ["prompt_encoder.*"],
}
"""Patterns over the names of what each adapter trains: PEFT's own names, and those of the test's config."""


def trials() -> list[tuple[Cell, str]]:
    """Each cell that is ok, and on which tiny model."""
    ok = ok_cells("sft")
    again = [cell for cell in ok if cell.precision == "no" and cell.strategy in ("single", "zero3")]
    return [(cell, "llama") for cell in ok] + [(cell, "t5") for cell in again] + expert_trials() + head_trials()


def expert_trials() -> list[tuple[Cell, str]]:
    """A mixture of experts: every strategy, whole; with LoRA where parameters are sharded."""
    plain = [cell for cell in ok_cells("sft") if (cell.quantization, cell.precision) == (None, "no")]
    return [
        (cell, "mixtral")
        for cell in plain
        if cell.adapter == "full" or (cell.adapter == "lora" and cell.strategy in ("single", "zero3", "fsdp2"))
    ]


def ok_cells(stage: str) -> list[Cell]:
    return [cell for cell, verdict in table(planner_named(stage).tested, stage) if verdict.status == "ok"]


def head_trials() -> list[tuple[Cell, str]]:
    """Reward models and classifiers: every strategy, whole and with LoRA, on a decoder; other kinds of models on one
    process."""
    ok = [*ok_cells("reward"), *ok_cells("classify")]
    kinds = [
        (cell, name)
        for cell in ok
        if (cell.strategy, cell.precision) == ("single", "no") and cell.quantization != "4bit"
        for name in OTHERS
    ]
    return [(cell, "llama") for cell in ok] + kinds


def trial_name(trial: Trial) -> str:
    return "-".join(map(str, (trial[1], *vars(trial[0]).values())))


def marked() -> list[Any]:
    """In low precision, one process is enough for CI."""
    return [
        pytest.param(
            trial, marks=[pytest.mark.long] if trial[0].precision != "no" and trial[0].strategy != "single" else []
        )
        for trial in trials()
    ]


def beside(trial: Trial) -> Trial:
    """The cell that a trial must equal."""
    cell, model = trial
    if model == "mixtral" and cell.strategy != "single":
        return Cell("fsdp2", None, cell.adapter, "no"), model
    return Cell("single", cell.quantization, cell.adapter, "no", cell.stage), model


@pytest.fixture(scope="module")
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, repository: Path
) -> dict[Trial, dict[str, Any]]:
    """All cells that are asked for, from one process, whose ranks are forked: libraries are imported once."""
    out = tmp_path_factory.mktemp("cells") / "cells.jsonl"
    asked = [
        item.callspec.params["trial"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module
    ]
    needed = dict.fromkeys([*asked, *(beside(trial) for trial in asked if trial[0].precision == "no")])
    named = [
        ",".join(str(value or "none") for value in (*list(vars(cell).values())[:4], model, cell.stage))
        for cell, model in needed
    ]
    result = python("-m", "tests.distributed.cells", out, *named, cwd=repository, timeout=700)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {(Cell(*row["cell"]), row["model"]): row for row in rows}


@pytest.mark.timeout(900)  # the first waits for all
@pytest.mark.parametrize("trial", marked(), ids=trial_name)
def test_an_ok_cell_trains(found: dict[Trial, dict[str, Any]], trial: Trial) -> None:
    row, (cell, model) = found[trial], trial
    assert "error" not in row, row["error"]
    first, *_, last = row["losses"]
    assert last < first - 1e-3
    # what a step asks the device; of T5's classifier Transformers asks as well, where its eos tokens are
    if model != "mixtral":  # whose layers ask which experts were chosen
        assert sum(row["reads"].values()) <= (4 if model == "t5" else 3) * len(row["losses"])
    should = {name for name in row["all"] if any(fnmatchcase(name, pattern) for pattern in TRAINED[cell.adapter])}
    assert should
    counters = {name for name in row["all"] if "ranknum" in name}  # how many ranks adalora has left
    assert set(row["changed"]) - counters == should
    if model == "mixtral" and cell.strategy != "single":
        # the auxiliary loss is each rank's own, as Transformers has it: so all strategies agree, not with one process
        assert row["losses"] == pytest.approx(found[beside(trial)]["losses"], abs=1e-5)
    elif cell.precision == "no":
        assert row["losses"] == pytest.approx(found[beside(trial)]["losses"], abs=1e-5)


@pytest.mark.parametrize("trial", [trial for trial in trials() if trial[0].strategy == "single"], ids=trial_name)
def test_what_was_saved_is_what_was_trained(found: dict[Trial, dict[str, Any]], trial: Trial) -> None:
    """Loaded again on its base, quantized as that was, as `evaluate` and `generate` do. Under autocast the weights that
    are saved are those that are there; AdaLoRA leaves out ranks that are masked, and rounds otherwise."""
    row, cell = found[trial], trial[0]
    tolerance = 1e-5 if cell.adapter == "adalora" else 5e-6
    if (cell.adapter, cell.quantization, cell.precision) == ("adalora", "4bit", "bf16"):
        # bf16 products of dequantized matrices round otherwise from CPU to CPU: 5.3e-5 of 5.58 on an Intel Xeon.
        tolerance = 2e-5 * abs(row["live"])
    assert row["reloaded"] == pytest.approx(row["live"], abs=tolerance)
    assert row["live"] < row["losses"][0] - 1e-3, "it is not the base's"
