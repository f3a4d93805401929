"""`scaleup verify` as users call it: on real runs of tiny twins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import scaleup as package
from tests.cli import scaleup, write_config
from tests.planted import Bug
from tests.small_runs import PPO, SFT, write_rows
from tests.stand_in_engine import stand_in_python

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


@pytest.mark.parametrize("is_stale", [True, pytest.param(False, marks=pytest.mark.long)])
def test_stale_weights_in_the_engine_are_found(tmp_path: Path, is_stale: bool) -> None:
    """A bug in a copy of this package, which the command and all that it starts import."""
    shutil.copytree(Path(package.__file__).parent, tmp_path / "copy" / "scaleup")
    is_renewed = "self._weights is not None and self._weights.version == version:"
    stale = Bug("stale-weights", "scaleup.rl.generators", is_renewed, "self._weights is not None:")
    if is_stale:
        (tmp_path / "copy" / "scaleup" / "rl" / "generators.py").write_text(stale.patched(), encoding="utf-8")
    write_rows(tmp_path)
    python = str(stand_in_python(tmp_path / "environment"))
    reward = {"placement": "function", "function": "builtin:length"}
    changes = {"name": "x", "reward": reward, "generator": {"engine": "vllm", "python": python}}
    config = write_config(PPO | changes, tmp_path)
    env = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(tmp_path / "copy")}
    result = scaleup("verify", config, "--only", "engine", "--json", cwd=tmp_path, env=env)
    [found] = json.loads(result.stdout)["findings"]
    assert (found["verdict"], result.code) == (("violated", 1) if is_stale else ("holds", 0)), found
