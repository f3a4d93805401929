"""Jobs of a pipeline: one a run, in order, and a script that submits them all."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import load_mapping
from scaleup.launcher.render.job import Job
from scaleup.plan.describe import Described
from scaleup.studies.jobs import (
    SUBMIT_ALL,
    PlannedJob,
    kubernetes_script,
    render_pipeline,
    slurm_script,
    submit_pipeline,
)
from scaleup.studies.steps import Step
from tests.unit.launcher.plans import plan_of
from tests.unit.studies.folders import SFT, made, write_rows

CONFIG = load_mapping({**SFT, "name": "x", "cluster": {"kubernetes": {"image": "i", "namespace": "nlp"}}}).config
assert CONFIG is not None
AFTER: dict[str, tuple[str, ...]] = {"a-b": (), "c": (), "d": ("a-b", "c"), "a_b": (), "e": ("a-b",)}


@pytest.fixture
def jobs(tmp_path: Path) -> dict[str, PlannedJob]:
    return {
        name: PlannedJob(Job(name, tmp_path / f"a b/{name}", (CONFIG,)), Step("run", ""), after)
        for name, after in AFTER.items()
    }


@pytest.fixture
def called(tmp_path: Path) -> Callable[[str, str, str], tuple[subprocess.CompletedProcess[str], list[str]]]:
    """Call a script beside a command that stands for the scheduler's. Gives how it ended, and how that was called."""

    def call(script: str, command: str, does: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        calls, stand_in, file = tmp_path / "calls", tmp_path / "bin" / command, tmp_path / SUBMIT_ALL
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(f'#!/bin/bash\necho "$@" >> {calls}\n{does}\n')
        stand_in.chmod(0o755)
        file.write_text(script)
        path = {**os.environ, "PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
        done = subprocess.run(["bash", file], env=path, capture_output=True, text=True, check=False, timeout=60)
        return done, calls.read_text().splitlines()

    return call


@pytest.mark.parametrize("render", [slurm_script, kubernetes_script])
def test_a_script_is_one_that_shellcheck_accepts(
    tmp_path: Path, jobs: dict[str, PlannedJob], render: Callable[[dict[str, PlannedJob]], str]
) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    (tmp_path / SUBMIT_ALL).write_text(render(jobs))
    subprocess.run(["shellcheck", tmp_path / SUBMIT_ALL], check=True, timeout=60)


def test_on_slurm_each_begins_after_those_that_it_needs(
    tmp_path: Path, jobs: dict[str, PlannedJob], called: Callable[..., Any]
) -> None:
    done, calls = called(slurm_script(jobs), "sbatch", f'wc -l < {tmp_path}/calls | tr -d " \\n"; echo ";cluster"')
    assert done.stdout.split("\n") == [*(f"{name} {number};cluster" for number, name in enumerate(jobs, 1)), ""]
    assert calls == [
        f"--parsable {tmp_path}/a b/a-b/job.sbatch",
        f"--parsable {tmp_path}/a b/c/job.sbatch",
        f"--parsable --dependency=afterok:1:2 --kill-on-invalid-dep=yes {tmp_path}/a b/d/job.sbatch",
        f"--parsable {tmp_path}/a b/a_b/job.sbatch",
        f"--parsable --dependency=afterok:1 --kill-on-invalid-dep=yes {tmp_path}/a b/e/job.sbatch",
    ]


KUBECTL = """
if [ "$1" = create ]; then
  [[ $4 != */{refused}/* ]] || {{ echo "AlreadyExists" >&2; exit 1; }}
  name=$(basename "$(dirname "$4")")
  printf 'configmap/%s\njob.batch/%s\n' "$name" "$name"
elif [ "$(grep -c "^get.*${{@: -1}}$" {calls})" = 1 ]; then
  exit 1 # nobody answers at first
elif [ "$(grep -c "^get.*${{@: -1}}$" {calls})" -gt 2 ]; then
  [[ ${{@: -1}} != */{lost} ]] && echo "SuccessCriteriaMet Complete" || echo "FailureTarget Failed"
fi
"""
"""Stands for `kubectl`: a job has ended when it is looked at for the third time."""


@pytest.mark.parametrize(
    ("refused", "lost", "created", "said"),
    [
        ("-", "-", list(AFTER), ""),
        ("d", "-", ["a-b", "c", "d"], "AlreadyExists\nd: if a job of that name has ended: kubectl delete --filename "),
        ("-", "c", ["a-b", "c"], "c: job.batch/c has failed: kubectl logs --namespace=nlp job.batch/c\n"),
    ],
)
def test_on_kubernetes_each_begins_when_the_one_before_has_ended(
    tmp_path: Path,
    jobs: dict[str, PlannedJob],
    called: Callable[..., Any],
    refused: str,
    lost: str,
    created: list[str],
    said: str,
) -> None:
    does = KUBECTL.format(calls=tmp_path / "calls", refused=refused, lost=lost)
    done, calls = called(kubernetes_script(jobs, seconds=0), "kubectl", does)
    assert done.returncode == int(bool(said)) and done.stderr.startswith(said), done.stderr
    assert [line.split("/")[-2] for line in calls if line.startswith("create")] == created
    assert done.stdout.split() == [word for name in created if name != refused for word in (name, f"job.batch/{name}")]
    looks = [line for line in calls if line.startswith("get")]
    assert len(looks) == 3 * len(done.stdout.splitlines())
    assert all("--namespace=nlp" in line for line in looks)


def test_a_pipeline_for_kubernetes_is_submitted_by_its_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    stand_in = tmp_path / "bin/kubectl"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/bash\n[ "$1" = create ] && echo job.batch/x || echo Complete\n')
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    cluster = {"nodes": 1, "kubernetes": {"volume_claim": "v"}, "container": {"image": "i"}}
    runs = {name: {"config": {**SFT, "cluster": cluster}} for name in ("base", "other")}
    made("base", runs=runs)
    facts = plan_of(RunFolder(tmp_path)).model
    for user in ("scaleup.plan.resolve", "scaleup.studies.check"):
        monkeypatch.setattr(f"{user}.describe_models", lambda models, *_: Described(dict.fromkeys(models, facts)))
    raw = {"pipeline": "p", "runs": runs}
    assert submit_pipeline(Path("pipeline.yaml"), raw, (), None, False, Console()) == 0
    assert capfd.readouterr().out == "other job.batch/x\n", "the other one has finished already"
    assert [file.name for file in sorted((tmp_path / "runs/p-other.jobs/1").iterdir())] == [
        "job.yaml",
        "logs",
        SUBMIT_ALL,
    ]
    render_pipeline(Path("pipeline.yaml"), raw, (), None, tmp_path / "jobs")
    assert (tmp_path / "jobs" / SUBMIT_ALL).read_text().endswith(f"run other {tmp_path}/jobs/other/job.yaml\n")


def test_nothing_is_rendered_of_a_pipeline_that_has_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    runs = {"base": {"config": SFT}}
    made("base", runs=runs)
    render_pipeline(Path("pipeline.yaml"), {"pipeline": "p", "runs": runs}, (), None, tmp_path / "jobs")
    assert not (tmp_path / "jobs").exists()
