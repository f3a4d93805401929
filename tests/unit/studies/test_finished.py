"""A pipeline that has finished says so without looking at a model, and without starting anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.unit.studies.folders import SFT, made, write_rows

CHAIN = {"r0": {"config": SFT}} | {
    f"r{number}": {"config": SFT, "overrides": {"model.path": f"${{r{number - 1}}}"}} for number in range(1, 8)
}
COUNTING = """
import json, subprocess, sys
from scaleup import cli
started = []
sys.addaudithook(lambda event, _: started.append(event) if event in ("subprocess.Popen", "os.fork") else None)
sys.argv = ["scaleup", "run", "pipeline.yaml"]
try:
    cli.main()
except SystemExit as end:
    print(json.dumps([end.code, started, sorted(sys.modules)]), file=sys.stderr)
"""
HEAVY = {"torch", "transformers", "numpy", "matplotlib", "scaleup.studies.check", "scaleup.launcher.start"}


def test_it_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    made(runs=CHAIN)
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"pipeline": "p", "runs": CHAIN}))
    done = subprocess.run([sys.executable, "-c", COUNTING], capture_output=True, text=True, check=True)
    code, started, modules = json.loads(done.stderr)
    assert (code, started) == (0, [])
    assert HEAVY.isdisjoint(modules)
    assert done.stdout.splitlines() == [
        *(f"r{number}  skip    finished and unchanged" for number in range(8)),
        "pipeline p has finished already; nothing to do",
    ]
