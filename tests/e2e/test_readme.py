"""Every command of the README runs as it stands there, in order, in a folder that looks like the repository."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S) for line in block.splitlines()]
MAKE_RUN = 'ARGS="train.max_steps=2 train.warmup_steps=0 data.validation.max_rows=8 evaluation.max_samples=8"'
RECURSIVE = {"make test"}
"""What this test is part of; `.ci/run` is checked to call it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository by links, so that runs/ is not the developer's own."""
    installed = REPOSITORY / ".venv" / ".installed"
    if not installed.is_file():
        pytest.skip("the README's commands need what `make setup` installs in .venv")
    for name in ("constraints.txt", "pyproject.toml"):  # else `make run` would install from a folder that goes away
        assert (REPOSITORY / name).stat().st_mtime <= installed.stat().st_mtime, f"{name} is newer: run make setup"
    folder = tmp_path_factory.mktemp("readme")
    for name in (".venv", "configs", "data", "scripts", "scaleup", "Makefile", "constraints.txt", "pyproject.toml"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in RECURSIVE])
def test_command_runs(command: str, place: Path) -> None:
    # the main job takes minutes: here it runs whole, with fewer steps and rows
    words = shlex.split(f"{command} {MAKE_RUN}" if command == "make run" else command)
    path = f"{place / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words, cwd=place, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    if command == "make run":
        assert "before" in done.stdout and "after" in done.stdout and "accuracy" in done.stdout
        assert (place / "runs" / "reviews" / "model" / "model.safetensors").is_file()


def test_commands_were_found() -> None:
    assert "make run" in COMMANDS and "make test" in COMMANDS and len(COMMANDS) >= 7


def test_ci_calls_the_test_command() -> None:
    assert "make --no-print-directory check" in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^check: lint test\b", makefile, re.M)


def test_paths_named_in_the_readme_exist() -> None:
    for path in re.findall(r"`(tests/[\w/.]+)`|\]\((docs/[\w/.]+)\)", README):
        assert (REPOSITORY / (path[0] or path[1])).exists(), path
