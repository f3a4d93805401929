"""Which runs may be removed, and that what is half removed is no run."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.runs.remove import children_of, remove_run
from tests.unit.runs.made import ended, held, made


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=300)


def refusals(path: Path, is_sure: bool = True) -> list[str]:
    with pytest.raises(ScaleupError) as caught:
        remove_run(path, is_sure, Console())
    return [str(problem) for problem in caught.value.problems]


def test_a_run_is_gone(tmp_path: Path, console: Console) -> None:
    run = ended(made(tmp_path), "finished")
    assert remove_run(run.path, True, console) == 0
    assert [file.name for file in tmp_path.iterdir()] == [".x.lock"]
    assert "is removed: " in console.export_text()


def test_what_is_needed_or_goes_on_stays(tmp_path: Path) -> None:
    base = ended(made(tmp_path, "base"), "finished")
    made(tmp_path, "child", parent=base.path)
    made(tmp_path / "deeper", "grandchild", parent=tmp_path / "child")
    with held(base):
        running, needed = refusals(base.path)
    assert "runs now, on host" in running
    assert needed.startswith(f"{base.path}: is what other runs were made from: child -> ")
    assert base.manifest_file.is_file()
    assert [path.name for path in children_of(RunFolder(tmp_path / "child"))] == ["grandchild"]


def test_what_a_run_wrote_may_be_anothers_rows(tmp_path: Path) -> None:
    drawn = ended(made(tmp_path, "drawn"), "finished")
    reads = made(tmp_path, "reads", drawn_by=drawn.path)
    made(tmp_path, "else")
    assert children_of(drawn) == [reads.path]


def test_what_goes_on_within_it(tmp_path: Path) -> None:
    run = ended(made(tmp_path), "finished")
    evaluation = made(run.path / "evaluations", "1")
    exported = ended(made(run.path / "exports", "1"), "finished")
    made(tmp_path, "child", parent=exported.path)
    with held(evaluation):
        running, needed = refusals(run.path)
    assert running.startswith(f"{evaluation.path}: runs now, on host")
    assert needed.startswith(f"{run.path}: is what other runs were made from: child")


def test_what_is_no_run_stays(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/config.yaml").write_text("stage: sft")
    (refusal,) = refusals(tmp_path / "project")
    assert "is no run folder" in refusal
    (tmp_path / "link").symlink_to(made(tmp_path).path)
    (refusal,) = refusals(tmp_path / "link")
    assert f"is a link to {tmp_path / 'x'}" in refusal


def test_it_asks(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path)
    assert refusals(run.path, is_sure=False) == [
        "--yes: is needed where there is no terminal to ask on -> add it if you are sure"
    ]
    for stream in (sys.stdout, answers := io.StringIO("n\ny\n")):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", answers)
    assert remove_run(run.path, False, console) == 1
    assert run.plan_file.is_file()
    assert remove_run(run.path, False, console) == 0
    assert not run.path.exists()


def test_killed_half_way(tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    run = ended(made(tmp_path), "finished")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None if ignore_errors else killed())
        remove_run(run.path, True, console)
    assert not run.path.exists(), "nobody takes what is left for a run"
    assert (tmp_path / ".x.removed").is_dir()
    assert remove_run(run.path, True, console) == 0
    assert not (tmp_path / ".x.removed").exists()
