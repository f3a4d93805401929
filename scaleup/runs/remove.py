"""A run that nobody needs goes in and is gone: renamed first, so that what is half removed is never taken for one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import Problem, ScaleupError
from scaleup.reports.terminal import size_text
from scaleup.runs.listing import run_folders, tree_bytes
from scaleup.runs.state import is_run_folder, parents_of, place_of, read_plan

NUM_SHOWN = 5
"""Bounds the runs that a refusal names."""


def remove_run(path: Path, is_sure: bool, console: Console) -> int:
    """Remove a run's folder, after a question on the terminal where nobody has said that he is sure. Return the exit
    code: 1 if the answer is no.

    Raises ScaleupError, with all reasons, for a run that goes on, for one that others were made from, for what is no
    run, and where there is no terminal to ask on."""
    run = RunFolder(path.absolute())
    aside = run.path.with_name(f".{run.path.name}.removed")
    if aside.is_dir() and not run.path.exists():  # an earlier removal was killed
        _delete(aside)
        console.print(f"{path} is removed", soft_wrap=True)
        return 0
    if problems := [*_problems(path, run, is_sure)]:
        raise ScaleupError(problems)
    size = tree_bytes(run.path)
    if not is_sure and not _agrees(f"Remove {path} ({size_text(size)}) for good? [y/N] "):
        return 1
    with run.locked():  # from here on nobody can start it
        shutil.rmtree(aside, ignore_errors=True)
        run.path.rename(aside)
    _delete(aside)
    console.print(f"{path} is removed: {size_text(size)} freed", soft_wrap=True)
    return 0


def _problems(path: Path, run: RunFolder, is_sure: bool) -> Iterator[Problem]:
    if path.is_symlink():
        yield Problem(str(path), f"is a link to {path.readlink()}", "name the folder itself")
        return
    if not is_run_folder(path):
        yield Problem(str(path), "is no run folder", "name the folder of a run: `scaleup runs` lists them")
        return
    for inner in (run, *runs_within(run)):
        if (place := place_of(inner)) is not None:
            shown = path / inner.path.relative_to(run.path)
            yield Problem(str(shown), f"runs now, on host {place.host}", f"stop it first: scaleup stop {shown}")
    if children := [child.name for child in children_of(run)]:
        more = f" and {len(children) - NUM_SHOWN} more" * (len(children) > NUM_SHOWN)
        what = f"is what other runs were made from: {', '.join(children[:NUM_SHOWN])}{more}"
        yield Problem(str(path), what, "remove these first, or leave it")
    if not is_sure and not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield Problem("--yes", "is needed where there is no terminal to ask on", "add it if you are sure")


def _agrees(question: str) -> bool:
    print(question, end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _delete(folder: Path) -> None:
    """Raises ScaleupError at the folder for what cannot be removed."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        what = f"cannot be removed: {error.strerror or error}"
        raise ScaleupError.of(str(folder), what, "remove the folder yourself: no run is in it any more") from error


def runs_within(run: RunFolder) -> Iterator[RunFolder]:
    """Yield the runs in a run's folder: its evaluations, generations and exports."""
    yield from (RunFolder(plan.parent) for plan in sorted(run.path.glob("*/*/plan.json")))


def children_of(run: RunFolder) -> list[Path]:
    """Return the folders of the runs in the same `runs_dir` that were made from a run, or from one in its folder."""
    place, others = run.path.resolve(), (RunFolder(folder) for folder in run_folders(run.path.parent))
    return [
        other.path
        for other in others
        if other.path != run.path
        and any(parent.is_relative_to(place) for parent in parents_of(other, read_plan(other)))
    ]
