"""Jobs of a pipeline: one a run, in order, and a script that submits them all."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scaleup.launcher.render.job import Job
from scaleup.studies.jobs import PlannedJob, render_pipeline, submit_script
from scaleup.studies.steps import Step
from tests.unit.studies.folders import SFT, made, write_rows


@pytest.mark.parametrize("shellcheck", [False, True])
def test_the_script_submits_each_after_those_that_it_needs(tmp_path: Path, shellcheck: bool) -> None:
    calls = tmp_path / "calls"
    fake = tmp_path / "bin/sbatch"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nwc -l < {calls} | tr -d " \\n"; echo ";cluster"\n')
    fake.chmod(0o755)
    jobs = {
        name: PlannedJob(Job(name, tmp_path / f"a b/{name}", ()), Step("run", ""), after)
        for name, after in {"a-b": (), "c": (), "d": ("a-b", "c"), "a_b": (), "e": ("a-b",)}.items()
    }
    script = tmp_path / "submit.sh"
    script.write_text(submit_script(jobs))
    if shellcheck:
        if shutil.which("shellcheck") is None:
            pytest.skip("shellcheck is not installed")
        subprocess.run(["shellcheck", script], check=True, timeout=60)
        return
    path = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"}
    told = subprocess.run(["bash", script], env=path, capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.split("\n") == [*(f"{name} {number};cluster" for number, name in enumerate(jobs, 1)), ""]
    assert calls.read_text().splitlines() == [
        f"--parsable {tmp_path}/a b/a-b/job.sbatch",
        f"--parsable {tmp_path}/a b/c/job.sbatch",
        f"--parsable --dependency=afterok:1:2 --kill-on-invalid-dep=yes {tmp_path}/a b/d/job.sbatch",
        f"--parsable {tmp_path}/a b/a_b/job.sbatch",
        f"--parsable --dependency=afterok:1 --kill-on-invalid-dep=yes {tmp_path}/a b/e/job.sbatch",
    ]


def test_nothing_is_rendered_of_a_pipeline_that_has_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    runs = {"base": {"config": SFT}}
    made("base", runs=runs)
    render_pipeline(Path("pipeline.yaml"), {"pipeline": "p", "runs": runs}, (), None, tmp_path / "jobs")
    assert not (tmp_path / "jobs").exists()
