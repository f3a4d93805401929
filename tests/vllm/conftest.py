"""Tests with a real vLLM, in the environment that `make vllm` makes; each is skipped where there is none."""

from pathlib import Path

import pytest

PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"


@pytest.fixture(scope="session")
def python() -> Path:
    """The Python of the environment with vLLM."""
    if not (PYTHON.parent.parent / ".installed").is_file():
        pytest.skip("there is no .venv-vllm: run `make vllm`")
    return PYTHON


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
