"""A config that is written out whole, for a job or in a run folder, is refused nothing that it was not before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from scaleup.config.load import dump, load_mapping, read_mapping
from scaleup.errors import ScaleupError
from scaleup.plan.resolve import Sources, checked_rows, resolve
from tests.conftest import REPOSITORY

FILES = [
    file
    for file in sorted((REPOSITORY / "configs").glob("*/*.yaml"))
    if file.parent.name not in ("pipelines", "search")
]


class _Described(Exception):
    pass


def _describe(*_: Any) -> NoReturn:
    raise _Described


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], list[str]]:
    """What is refused of a config, as far as no model is looked at."""
    monkeypatch.chdir(REPOSITORY)

    def told(raw: dict[str, Any]) -> list[str]:
        try:
            resolve(load_mapping(raw), check_run_folder=False, peaks=False, sources=Sources(checked_rows, _describe))
        except ScaleupError as error:
            return [str(problem) for problem in error.problems]
        except _Described:
            pass
        return []

    return told


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_it_is_the_same_config(file: Path, refused: Callable[[dict[str, Any]], list[str]]) -> None:
    raw = read_mapping(file)
    config = load_mapping(raw).config
    assert config is not None
    whole = yaml.safe_load(dump(config))
    assert load_mapping(whole).config == config
    assert set(refused(whole)) <= set(refused(raw))
