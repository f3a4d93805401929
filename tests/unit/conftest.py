"""What unit tests of both planes share: a cache of the session's own, in which each tiny model is built once, and a run
folder with a runtime of one process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scaleup.artifacts.run_folder import RunFolder

if TYPE_CHECKING:
    from scaleup.distributed.runtime import Runtime


@pytest.fixture(scope="session")
def models_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(models_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(models_cache))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "runs" / "x")
    run.path.mkdir(parents=True)
    return run


@pytest.fixture
def runtime(run: RunFolder) -> Runtime:
    from tests.unit.data import tiny  # the control plane's tests do without torch

    return tiny.single_process(run.path)
