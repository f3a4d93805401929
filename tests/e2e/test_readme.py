"""Every command of the README, the guide and the page about clusters runs as it stands there, in order, in a folder
that looks like the repository. Those of other pages are checked by tests/unit/test_docs.py."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PAGES = ("README.md", "docs/guide.md", "docs/clusters.md")
COMMANDS = [
    (page, line)
    for page in PAGES
    for block in re.findall(r"^```sh\n(.*?)^```", (REPOSITORY / page).read_text(encoding="utf-8"), re.M | re.S)
    for line in block.splitlines()
]
REVIEWS = "train.max_steps=2 train.warmup_steps=0 data.validation.max_rows=8"
SHORTER = {
    "make run": f'ARGS="{REVIEWS} evaluation.max_samples=8"',
    ".venv/bin/scaleup run configs/sft/reviews.yaml train.max_steps=5 name=first": REVIEWS,
}
"""What is added to commands that take minutes: they run whole, with fewer steps and rows."""
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


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("page", "command"), [each for each in COMMANDS if each[1] not in RECURSIVE])
def test_command_runs(page: str, command: str, place: Path) -> None:
    words = shlex.split(f"{command} {SHORTER.get(command, '')}")
    path = f"{place / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words, cwd=place, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{page}: {command}\n{done.stdout}\n{done.stderr}"
    if command == "make run":
        assert "before" in done.stdout and "after" in done.stdout and "accuracy" in done.stdout
        assert (place / "runs" / "reviews" / "model" / "model.safetensors").is_file()


def test_commands_were_found() -> None:
    commands = [command for _, command in COMMANDS]
    assert {"make setup", "make run", "make test", *SHORTER} <= set(commands)
    assert len(commands) >= 15 and {page for page, _ in COMMANDS} == set(PAGES)


def test_ci_calls_the_test_command() -> None:
    assert "make --no-print-directory check" in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^check: lint test test-slow\b", makefile, re.M)
