"""Runs of a pipeline side by side: each once its inputs are there, on a share of its own, until one does not finish."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from scaleup.errors import ScaleupError
from scaleup.studies import side_by_side
from scaleup.studies.shares import Slot
from tests.unit.studies.folders import RUNS, pipeline_of, write_rows

OUTLIVES = "until [ -e pid ] && ! [ -e /proc/$(cat pid) ]; do sleep 0.01; done"
"""Waits until the one whose process id is in the file `pid` has ended and been seen."""
Make = Callable[..., tuple[int, list[str], list[tuple[str, Slot]]]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes RUNS, two at a time, each by a shell's command. Gives the exit code, what was printed, and what began
    where."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    monkeypatch.setattr(side_by_side, "slots_of", lambda machine, count: [Slot((n,), None) for n in range(count)])

    def made(**commands: str) -> tuple[int, list[str], list[tuple[str, Slot]]]:
        began: list[tuple[str, Slot]] = []

        def start_on(slot: Slot, config_file: Path, output: int) -> subprocess.Popen[bytes]:
            began.append((config_file.stem, slot))
            command = commands.get(config_file.stem, "true")
            return subprocess.Popen(["sh", "-c", command], stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path)

        monkeypatch.setattr(side_by_side, "start_on", start_on)
        pipeline, text = pipeline_of(RUNS, num_parallel=2), io.StringIO()
        console = Console(file=text, width=200)
        code = side_by_side.SideBySide(pipeline, list(pipeline.runs), console).run()
        return code, text.getvalue().splitlines(), began

    return made


def test_each_begins_once_its_inputs_are_there(make: Make) -> None:
    both = "until [ -e {} ]; do sleep 0.01; done"  # neither ends before the other has begun
    code, said, began = make(
        base=f"touch base; {both.format('other')}", other=f"touch other; {both.format('base')}; echo [bold]it[/bold]"
    )
    assert code == 0
    assert [name for name, _ in began] == ["base", "other", "child", "evaluation"]
    assert {slot.cores for name, slot in began[:2]} == {(0,), (1,)}
    assert said == ["other      | [bold]it[/bold]"]


def test_once_one_has_not_finished_no_other_begins_and_those_that_run_go_on(make: Make) -> None:
    code, said, began = make(base="echo $$ > pid; exit 3", other=OUTLIVES)
    assert code == 3
    assert {name for name, _ in began} == {"base", "other"}
    assert said == ["runs.base ended with exit code 3; waiting for other"]


def test_a_signal_is_passed_on_and_no_other_begins(make: Make) -> None:
    saves, waits = "trap 'exit 75' TERM", "while :; do sleep 0.01; done"
    signals = f"{saves}; until [ -e other ]; do sleep 0.01; done; kill -TERM {os.getpid()}; {waits}"
    code, _, began = make(base=signals, other=f"{saves}; touch other; {waits}")
    assert code == 75
    assert {name for name, _ in began} == {"base", "other"}


def test_killed_from_outside_is_told_as_a_shell_tells_it(make: Make) -> None:
    assert make(base="kill -KILL $$")[0] == 128 + signal.SIGKILL


def test_a_folder_that_cannot_be_used_ends_it_once_the_others_have_ended(make: Make, tmp_path: Path) -> None:
    (tmp_path / "runs/p-child").mkdir(parents=True)
    (tmp_path / "runs/p-child/mine").touch()
    with pytest.raises(ScaleupError, match=r"runs\.child: runs_dir/name .* exists and is no run folder"):
        make(base="echo $$ > pid", other=f"{OUTLIVES}; touch ended")
    assert (tmp_path / "ended").exists()
