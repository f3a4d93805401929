from __future__ import annotations

from pathlib import Path

import pytest

from scaleup.artifacts.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "runs" / "x")
    run.path.mkdir(parents=True)
    return run
