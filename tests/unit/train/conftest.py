from pathlib import Path

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.distributed.runtime import Runtime
from tests.unit.data import tiny


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return folder


@pytest.fixture
def runtime(run: RunFolder) -> Runtime:
    return tiny.single_process(run.path)
