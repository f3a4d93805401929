"""Runs of a pipeline start one after another until one does not finish, and go on by the same command."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from scaleup import cli
from scaleup.artifacts.run_folder import RunFolder
from scaleup.launcher.agent import NodeAgent
from scaleup.launcher.ending import RESUMABLE, Part
from scaleup.plan.describe import Described
from tests.unit.launcher.plans import plan_of
from tests.unit.studies.folders import SFT, write_rows

CHAIN = {
    "last": {"config": SFT, "overrides": {"model.path": "${middle}"}},
    "first": {"config": SFT},
    "middle": {"config": SFT, "overrides": {"model.path": "${first}"}},
}
GOES_ON = "pipeline p goes on with: scaleup run pipeline.yaml"
Ends = Callable[[str], int]
"""Says how each start of a run ends, by its name."""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump({"pipeline": "p", "runs": CHAIN}))
    facts = plan_of(RunFolder(tmp_path)).model
    for user in ("scaleup.plan.resolve", "scaleup.studies.check"):
        monkeypatch.setattr(f"{user}.describe_models", lambda models, *_: Described(dict.fromkeys(models, facts)))
    return tmp_path


@pytest.fixture
def scaleup(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str]]]:
    """The command line, with groups that end in a way of the test's choosing. Gives the exit code, and what began."""

    def command(*arguments: str, ends: Ends = lambda name: 0) -> tuple[int, list[str]]:
        began: list[str] = []

        def run_groups(agent: NodeAgent, watch: object) -> Part:
            began.append(agent.run.path.name.removeprefix("p-"))
            code = ends(began[-1])
            if code == 0:
                agent.run.model.mkdir(exist_ok=True)
                (agent.run.model / "config.json").write_text("{}")
                (agent.run.model / "model.safetensors").touch()
                agent.run.finish("sft", agent.run.path.name, {"loss": 0.5}, 6)
            elif code == RESUMABLE:
                agent.run.resumable_file.touch()
            return Part("group policy ended with exit code 1" if code == 1 else "")

        monkeypatch.setattr(NodeAgent, "run_groups", run_groups)
        monkeypatch.setattr(sys, "argv", ["scaleup", "run", "pipeline.yaml", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), began

    return command


def test_all_of_it(scaleup: Callable[..., tuple[int, list[str]]]) -> None:
    assert scaleup("--dry-run") == (0, [])
    assert scaleup() == (0, ["first", "middle", "last"])
    assert scaleup() == (0, [])


def test_it_stops_at_the_first_failure(
    scaleup: Callable[..., tuple[int, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert scaleup(ends=lambda name: int(name == "middle")) == (1, ["first", "middle"])
    assert capsys.readouterr().out.splitlines()[-1] == GOES_ON
    assert scaleup("last.train.seed=3") == (0, ["middle", "last"])


def test_stopped_any_number_of_times_nothing_is_made_twice(scaleup: Callable[..., tuple[int, list[str]]]) -> None:
    draw, ended = random.Random(0), []
    for _ in range(20):
        code, began = scaleup(ends=lambda name: draw.choice([0, RESUMABLE, RESUMABLE, 1]))
        ended += began if code == 0 else began[:-1]
        assert code in (0, 1, RESUMABLE)
    while scaleup()[1]:
        pass
    assert ended[:1] in ([], ["first"]) and len(set(ended)) == len(ended)
    assert {file.parent.name for file in Path("runs").glob("*/manifest.json")} == {"p-first", "p-middle", "p-last"}


def test_a_signal_at_the_end_of_a_run_begins_no_other(
    scaleup: Callable[..., tuple[int, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(name: str) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert scaleup(ends=ends) == (RESUMABLE, ["first"])
    assert capsys.readouterr().out.splitlines()[-1] == GOES_ON
    assert scaleup("--only", "middle") == (0, ["middle"])
    assert scaleup(ends=ends) == (0, ["last"]), "there was no other to begin"


def test_what_changed_is_made_again_and_what_there_was_is_kept(
    scaleup: Callable[..., tuple[int, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    scaleup()
    assert scaleup("--from", "middle", "middle.train.seed=3") == (0, ["middle", "last"])
    assert "train.seed changed: what was in " in capsys.readouterr().out
    assert sorted(folder.name for folder in Path("runs").glob("p-*")) == [
        "p-first",
        "p-last",
        "p-last.old-1",
        "p-middle",
        "p-middle.old-1",
    ]
    assert RunFolder(Path("runs/p-middle.old-1").absolute()).config.train.seed == 0  # type: ignore[attr-defined]
    assert scaleup("middle.train.seed=3") == (0, [])


def test_one_alone_needs_its_inputs(
    scaleup: Callable[..., tuple[int, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert scaleup("--only", "last") == (2, [])
    assert capsys.readouterr().err == (
        "error: runs.last: model.path: run middle has not finished, and is not asked for "
        "-> make it too: --from middle\n"
    )
