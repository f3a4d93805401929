"""Rows, and the run on the CPU that runs on a GPU are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import losses, run
from tests.gpu.tiny import CONFIG, write_rows


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_rows(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of CONFIG by step."""
    folder = tmp_path_factory.mktemp("cpu")
    write_rows(folder)
    return losses(run(CONFIG, cwd=folder))
