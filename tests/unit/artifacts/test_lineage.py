"""Which code a process runs: version, and the commit of a clone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

import scaleup
from scaleup.artifacts.lineage import Code
from scaleup.cli import app


def commit_in(folder: Path) -> str:
    """Makes a repository of one commit, and tells that commit."""
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scaleup").mkdir()
    (tmp_path / "scaleup/__init__.py").write_text("")
    monkeypatch.setattr(scaleup, "__file__", str(tmp_path / "scaleup/__init__.py"))
    return tmp_path


def test_an_installed_package_has_no_commit(package: Path) -> None:
    assert Code.of_this() == Code(version=scaleup.__version__)
    assert CliRunner().invoke(app, ["--version"]).output == f"scaleup {scaleup.__version__}\n"


def test_a_clone_has_one(package: Path) -> None:
    commit = commit_in(package)
    assert Code.of_this().commit == commit
    assert CliRunner().invoke(app, ["--version"]).output == f"scaleup {scaleup.__version__} ({commit})\n"
    (package / "scaleup/__init__.py").write_text("changed = 1")
    assert Code.of_this().commit == f"{commit}-dirty"
