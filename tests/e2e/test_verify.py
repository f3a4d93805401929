"""`scaleup verify` as users call it: on real runs of tiny twins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import scaleup, write_config
from tests.small_runs import SFT, write_rows

pytestmark = pytest.mark.slow
ONLY = ("--only", "learns", "--only", "processes")


def test_one_process_and_two(tmp_path: Path) -> None:
    write_rows(tmp_path)
    config = write_config(SFT | {"name": "x"}, tmp_path)
    result = scaleup("verify", config, *ONLY, "--json", "-o", "page.html", cwd=tmp_path, env={"TMPDIR": str(tmp_path)})
    assert result.code == 0, result.stdout + result.stderr
    told = json.loads(result.stdout)
    assert [(each["name"], each["verdict"]) for each in told["findings"]] == [
        ("learns", "holds"),
        ("processes", "holds"),
    ]
    assert told["findings"][0]["deviation"] > 0.01
    assert 0 < told["findings"][1]["deviation"] <= 1e-5, "two processes add in another order"
    assert told["is_well"] and told["runs"] is None
    assert "all that is due holds" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert list(tmp_path.glob("scaleup-verify-*")) == [], "the twins are gone"
