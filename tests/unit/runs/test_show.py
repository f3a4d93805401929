"""What `scaleup status` says of one run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from scaleup.artifacts.checkpoints import checkpoint_folder, write_listing
from scaleup.artifacts.run_folder import RunFolder
from scaleup.launcher.ranks import WorkerState
from scaleup.runs.show import num_restarts, show_status, span_text
from tests.unit.runs.made import ended, held, made

LINES = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
MISTAKE = {"where": "data.train", "what": "has no rows", "remedy": "give it some"}


def status(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    show_status(Console(force_terminal=False, width=300), run.path)
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == f"{run.path.name} (sft) in {run.path}"
    return dict(line.split(": ", 1) for line in lines)


def test_a_run_that_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = ended(made(tmp_path / "my runs", "x", LINES), "failed", "policy-rank0 was killed by signal 9")
    for step in (1, 2):
        (folder := checkpoint_folder(run.checkpoints, step)).mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(2000))
        write_listing(folder, step)
    (checkpoint_folder(run.checkpoints, 2) / "weights").write_bytes(b"")
    said = status(run, capsys)
    assert said["state"] == "failed"
    assert said["attempt"] == "1"
    assert said["steps"] == "2 of 4"
    assert said["last metrics"] == "step 2, loss 2"
    assert said["error"] == "policy-rank0 was killed by signal 9"
    assert said["checkpoints"].startswith("step 1 (2."), "one that is not whole is none"
    assert said["go on"] == "scaleup run 'my runs/x/config.yaml' --resume"


def test_a_mistake_is_said_as_the_run_printed_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = {"rank": "policy-rank0", "problems": [MISTAKE], "error": "", "time": 0.0, "traceback": ""}
    run = ended(made(tmp_path), "refused", error=error)
    assert status(run, capsys)["error"] == "data.train: has no rows -> give it some"


def test_an_error_that_nobody_could_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path)
    run.new_attempt().record_error("policy-rank1", {"rank": "policy-rank1", "problems": [], "error": "no", "time": 1.0})
    said = status(run, capsys)
    assert (said["state"], said["error"]) == ("unfinished", "policy-rank1 failed: no")


def test_a_run_that_goes_on_or_has_finished_has_no_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ended(made(tmp_path, "x", LINES), "failed", "of the attempt before")
    with held(run) as process:
        said = status(run, capsys)
        assert said["state"].endswith(f", process {process.pid}: starting")
        assert {"go on", "error"}.isdisjoint(said)
    assert {"go on", "error"}.isdisjoint(status(ended(run, "finished"), capsys))


def test_every_node_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ended(made(tmp_path, num_nodes=3), "stopped")
    said = status(run, capsys)
    assert said["state"] == "stopped (resumable)"
    assert said["go on"].endswith("--resume (on each of the other 2 nodes too, with --node-rank)")


def test_a_parent_that_was_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = ended(made(tmp_path, "parent"), "finished")
    child = made(tmp_path, "child", drawn_by=parent.path)
    said = status(child, capsys)
    assert (said["made from"], "stale" in said) == (str(parent.path), False)
    parent.finish("sft", "parent", {"train_loss": 1.0}, 5)
    assert status(child, capsys)["stale"] == f"data.train.0.path: {parent.path} was made again"
    child.config_file.write_text("no config")
    assert "stale" not in status(child, capsys)


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ended(made(tmp_path, "x", [*LINES, {"step": 2, "eval_perplexity": math.inf}]), "failed", "why")
    show_status(Console(), run.path, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["step"], told["error"], told["ranks"]) == ("failed", 2, "why", {})
    assert told["metrics"] == {"step": 2, "loss": 2.0, "eval_perplexity": None}
    assert (told["metric"], told["value"]) == ("loss", 2.0)
    assert told["command"].endswith("config.yaml --resume")


def test_a_table_on_a_terminal(tmp_path: Path) -> None:
    console = Console(record=True, width=200, force_terminal=True)
    show_status(console, ended(made(tmp_path, "x", LINES), "stopped").path)
    assert "stopped (resumable)" in console.export_text()


def test_restarts_of_a_group(tmp_path: Path) -> None:
    attempt = made(tmp_path).new_attempt()
    for restart in (0, 1, 10):
        attempt.launcher_log("reward", 0, restart).touch()
    attempt.launcher_log("reward-2", 0, 30).touch()
    ranks = [WorkerState(name, "vm", 1, 1, "", None, 0, ()) for name in ("reward-rank0", "policy-rank0")]
    assert [num_restarts(attempt, rank) for rank in ranks] == [10, 0]


def test_spans_of_time() -> None:
    spans = {0: "0 s", 59.6: "1 min", 61: "1 min 1 s", 3600: "1 h", 7325: "2 h 2 min", 180000: "2 d 2 h"}
    assert {seconds: span_text(seconds) for seconds in spans} == spans
