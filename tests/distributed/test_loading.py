"""How much memory a rank has while its model is loaded, at any moment until its first step. The table:
benchmarks/scale.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.test_runtime import python

CASES = [
    *(f"{strategy},{count},no,full" for strategy in ("zero3", "fsdp2") for count in (2, 4)),
    "ddp,2,no,full",
    "zero3,2,no,4bit",
]


@pytest.mark.slow
def test_a_rank_never_has_more_than_its_shards_and_two_parameters(tmp_path: Path, repository: Path) -> None:
    script = repository / "benchmarks" / "loading.py"
    result = python(script, "--now", "--json", tmp_path / "rows.json", *CASES, cwd=repository, timeout=280)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}"
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["case"] for row in rows] == CASES
    for row in rows:
        assert row["model"] > 500e6
        assert row["peak"] <= row["law"], row
        assert row["loaded"] <= row["loaded_law"], "nothing is kept, or quantized, before an engine shards it"
        if "writing" in row:  # a model that is trained as a whole
            assert row["writing"] <= row["writing_law"] < row["model"] / 2, "nor has it more of it while it is written"
    held = {row["case"]: row["peak"] for row in rows}
    assert held["fsdp2,4,no,full"] < rows[0]["model"] / 2
