"""Every cell of the compatibility table that is ok: it learns, it changes what it should and nothing else, and in
float32 it is the same training as one process's."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from scaleup.plan.compat import Cell, table
from tests.distributed.test_runtime import python

OK = [cell for cell, found in table() if found.status == "ok"]
TRAINED = {
    "full": ["*"],
    "selective": ["*layers.1.*", "*norm*"],
    "lora": ["*.lora_[AB].*"],
    "dora": ["*.lora_[AB].*", "*.lora_magnitude_vector.*"],
    "ia3": ["*.ia3_l.*"],
}
"""Patterns over the names of what each adapter trains: PEFT's own names, and those of the test's config."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[Cell, dict[str, Any]]:
    """All cells from one process, whose ranks are forked: libraries are imported once."""
    out = tmp_path_factory.mktemp("cells") / "cells.jsonl"
    result = python("-m", "tests.distributed.cells", out, cwd=repository, timeout=600)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {Cell(*row["cell"]): row for row in rows}


@pytest.mark.parametrize("cell", OK, ids=lambda cell: "-".join(map(str, vars(cell).values())))
def test_an_ok_cell_trains(found: dict[Cell, dict[str, Any]], cell: Cell) -> None:
    row = found[cell]
    assert "error" not in row, row["error"]
    first, *_, last = row["losses"]
    assert last < first - 1e-3
    should = {name for name in row["all"] if any(fnmatchcase(name, pattern) for pattern in TRAINED[cell.adapter])}
    assert should
    assert set(row["changed"]) == should
    if cell.precision == "no":
        alone = found[Cell("single", cell.quantization, cell.adapter, "no")]
        assert row["losses"] == pytest.approx(alone["losses"], abs=1e-5)
