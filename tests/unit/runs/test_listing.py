"""Which runs there are below a folder, what is said of each, and in which order."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scaleup.errors import ScaleupError
from scaleup.runs.listing import Wanted, headline, list_runs
from scaleup.runs.show import show_runs
from tests.unit.runs.made import ended, held, made


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three runs, one of a sweep; beside what is none."""
    base = ended(made(tmp_path, "base", [{"step": 4, "loss": 2.0}]), "finished")
    made(tmp_path, "child", [{"step": 1, "loss": 3.0}], parent=base.path)
    ended(made(tmp_path / "sweep", "a", [{"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 0.5}]), "stopped")
    (base.path / "model").mkdir()
    (base.path / "model/weights").write_bytes(bytes(5000))
    made(base.path / "inner", "part")
    made(tmp_path, ".base.removed")
    (tmp_path / "notes").mkdir()
    old = time.time() - 7200
    os.utime(base.attempt(1).path, (old, old))
    return tmp_path


def names(folder: Path, **wanted: Any) -> list[str]:
    return [line.name for line in list_runs(folder, Wanted(**wanted))]


def test_what_is_said(runs: Path) -> None:
    lines = {line.name: line for line in list_runs(runs, Wanted())}
    assert set(lines) == {"base", "child", "a"}
    base, child, swept = lines["base"], lines["child"], lines["a"]
    assert (base.state, base.step, base.metric, base.value) == ("finished", 4, "best_eval_loss", 1.5)
    assert base.bytes > 5000
    assert 7200 <= base.age_seconds < 7300
    assert (child.state, child.step, child.num_steps, child.parents) == ("unfinished", 1, 4, (base.path,))
    assert (swept.path, swept.state, swept.metric) == (runs / "sweep/a", "stopped", "eval_loss")


def test_filters_and_order(runs: Path) -> None:
    assert names(runs, state="finished") == ["base"]
    assert names(runs, stage="dpo") == []
    assert names(runs, stage="sft", sort="name") == ["a", "base", "child"]
    assert names(runs, sort="step") == ["base", "a", "child"]
    assert names(runs, sort="age")[-1] == "base"
    assert names(runs, sort="size")[0] == "base"
    assert names(runs, sort="state") == ["base", "a", "child"]
    assert names(runs, sort="eta") == ["a", "base", "child"], "none has one"
    with held(made(runs, "goes-on")):
        assert names(runs, state="running") == ["goes-on"]


@pytest.mark.parametrize("name", ["one", "run's [name]"])
def test_names_stay_as_they_are(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, "x").path.rename(tmp_path / name)
    show_runs(Console(force_terminal=False), tmp_path, Wanted())
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split("\t")[:4] == [name, "sft", "unfinished", ""]


def test_a_table_on_a_terminal(runs: Path) -> None:
    console = Console(record=True, width=200, force_terminal=True)
    show_runs(console, runs, Wanted())
    text = console.export_text()
    assert "sweep/a" in text
    assert "stopped (resumable)" in text
    assert "2 h" in text
    title = text.splitlines()[0].split()
    assert title == ["run", "stage", "state", "step", "metric", "size", "age", "made", "from"], "none has an ETA"


def test_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_runs(Console(), runs, Wanted(sort="name"), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in told] == ["a", "base", "child"]
    assert told[2]["parents"] == [str(runs / "base")]


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_runs(Console(width=300), tmp_path, Wanted())
    assert capsys.readouterr().out == f"no run in {tmp_path}\n"


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    with pytest.raises(ScaleupError) as caught:
        list_runs(tmp_path / "none", Wanted("sfd", "done", "loss"))
    assert [problem.where for problem in caught.value.problems] == [
        "--stage",
        "--state",
        "--sort",
        str(tmp_path / "none"),
    ]
    assert "running, finished, stopped, failed, unfinished" in caught.value.problems[1].remedy


def test_the_figure_that_a_run_goes_by() -> None:
    assert headline({"train_loss": 1.0, "best_eval_f1": 0.5, "best_step": 3}) == ("best_eval_f1", 0.5)
    assert headline({"train_loss": 1.0, "eval_loss": None, "best_eval_loss": None}) == ("train_loss", 1.0)
    assert headline({"scores": 2, "kl": 0.1, "held_out_after": 3.0}) == ("held_out_after", 3.0)
    assert headline({"baseline": {"perplexity": 9.0}, "model": {"perplexity": 4.0}}) == ("perplexity", 4.0)
    assert headline({"step": 3, "objective/scores": 0.5, "loss/policy": 1.0}) == ("objective/scores", 0.5)
    assert headline({"step": 3, "is_good": True, "words": "yes"}) == (None, None)
