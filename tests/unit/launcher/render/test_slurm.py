"""The sbatch script: as it was read and tried on a real Slurm, and executed with programs in Slurm's place that write
down what they are given."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaleup.launcher.render.job import Job
from scaleup.launcher.render.slurm import SCRIPT, sbatch_script, slurm_files
from tests.cli import wait_until
from tests.unit.launcher.render.cases import HOSTILE, PPO, REWARD_NODE, SFT, job_of, sweep_of
from tests.unit.launcher.render.golden import check

JOBS = {
    "plain": job_of(),
    "het": job_of(PPO, reward=REWARD_NODE),
    "split": job_of(PPO),
    "sweep": sweep_of(3, max_parallel=2),
    "hostile": job_of(environment=HOSTILE, workdir="/shared/it's $HOME", folder=Path('/shared/a "b" 100%')),
    "container": job_of(container={"image": "/images/scaleup 1.sqsh", "mounts": ["/scratch:/tmp/scratch"]}),
}

SRUN = """#!PYTHON
import os, subprocess, sys
parts = [[]]
for word in sys.argv[1:]:
    parts[-1].append(word) if word != ":" else parts.append([])
tasks = [part[part.index("bash") :] for part in parts]
environ = [dict(os.environ, SLURM_PROCID=str(rank)) for rank in range(len(tasks))]
running = [subprocess.Popen(task, env=env) for task, env in zip(tasks, environ)]
sys.exit(max(128 - code if code < 0 else code for code in [each.wait() for each in running]))
"""
SCALEUP = """#!PYTHON
import json, os, pathlib, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append("TERM"))
code = int(os.environ.get("CODE", "0"))
place = pathlib.Path(os.environ["PLACE"])
said = dict(argv=sys.argv[1:], environ=dict(os.environ), cwd=os.getcwd())
(place / f"{os.environ['SLURM_PROCID']}.pid").write_text(str(os.getpid()))
aside = place / f".{os.environ['SLURM_PROCID']}"
aside.write_text(json.dumps(said))
aside.rename(place / f"{os.environ['SLURM_PROCID']}.json")
deadline = time.monotonic() + 60
while os.environ.get("WAITS") and not told and time.monotonic() < deadline:
    time.sleep(0.01)
sys.exit(75 if told else code)
"""
SCANCEL = """#!/bin/bash
echo "$*" >"$PLACE/scancel"
kill -TERM "$(cat "$PLACE/0.pid")"
"""
SCONTROL = """#!/bin/bash
echo "$*" >>"$PLACE/scontrol"
case $* in
  *show*) echo "JobId=7 JobState=$STATE Requeue=1" ;;
  requeue*) kill -KILL "$PPID" ;; # as Slurm ends the script
esac
"""
PROGRAMS = {"srun": SRUN, "scaleup": SCALEUP, "scancel": SCANCEL, "scontrol": SCONTROL}


@pytest.mark.parametrize("name", JOBS)
def test_is_as_it_was_read(name: str) -> None:
    check(f"{name}.sbatch", sbatch_script(JOBS[name]))


@pytest.mark.parametrize("name", JOBS)
def test_shellcheck_finds_nothing(name: str, tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    script = tmp_path / SCRIPT
    script.write_text(sbatch_script(JOBS[name]))
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_configs_are_beside_the_script() -> None:
    assert list(slurm_files(JOBS["plain"])) == [SCRIPT, "config.yaml"]
    assert list(slurm_files(JOBS["sweep"])) == [SCRIPT, "config-0.yaml", "config-1.yaml", "config-2.yaml"]
    assert "name: reviews-2\n" in slurm_files(JOBS["sweep"])["config-2.yaml"]


def test_gpus_are_asked_for_as_the_cluster_wants() -> None:
    assert "#SBATCH --gpus-per-node=8\n" in sbatch_script(job_of())
    by_name = sbatch_script(job_of(slurm={"gres": "gpu:a100:8"}, gpus_per_node=8))
    assert "#SBATCH --gres=gpu:a100:8\n" in by_name and "--gpus-per-node" not in by_name


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with programs in Slurm's place, where they write down what they were given."""
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.write_text(text.replace("PYTHON", sys.executable))
        program.chmod(0o755)
    (tmp_path / "work $x").mkdir()
    return tmp_path


def script_process(place: Path, job: Job, **environ: str) -> subprocess.Popen[bytes]:
    script = place / "job.sbatch"
    script.write_text(sbatch_script(job))
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": "7", "PLACE": str(place)}
    return subprocess.Popen(["bash", script], env={**os.environ, "PATH": path, "STATE": "RUNNING", **slurm, **environ})


def execute(place: Path, job: Job, **environ: str) -> int:
    with script_process(place, job, **environ) as process:
        return process.wait(timeout=60)


def here(place: Path, raw: Any = None, **cluster: Any) -> Job:
    known = {"workdir": str(place / "work $x"), "setup": [], "slurm": {}, **cluster}
    return job_of(**({"raw": raw} if raw else {}), folder=place / "it's a $job", **known)


def told(place: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / f"{rank}.json").read_text())
    return found


def requeued(place: Path) -> bool:
    calls = (place / "scontrol").read_text().splitlines() if (place / "scontrol").is_file() else []
    return "requeue 7" in calls


def test_hostile_values_arrive_as_they_are(place: Path) -> None:
    assert execute(place, here(place, environment=HOSTILE)) == 0
    given = told(place)
    assert {name: given["environ"][name] for name in HOSTILE} == HOSTILE
    assert given["argv"] == ["run", str(place / "it's a $job/config.yaml"), "--resume", "--node-rank", "0"]
    assert given["cwd"] == str(place / "work $x")


@pytest.mark.parametrize(("code", "again"), [("75", True), ("2", False), ("0", False)])
def test_a_strict_setup_does_not_end_the_script_early(place: Path, code: str, again: bool) -> None:
    """`set -e` would end it where it waits for the run, which is then not queued again."""
    ended = execute(place, here(place, setup=["set -euo pipefail"]), CODE=code)
    assert requeued(place) == again
    assert ended == (-signal.SIGKILL if again else int(code))


def test_setup_comes_first_also_within_a_container(place: Path) -> None:
    lines = ["export FROM_SETUP='a  b'"]
    assert execute(place, here(place, setup=lines)) == 0
    assert told(place)["environ"]["FROM_SETUP"] == "a  b"
    (place / "0.json").unlink()
    settings = {"setup": lines, "environment": HOSTILE, "container": {"image": "x.sqsh"}}
    contained = here(place, {**SFT, "runs_dir": str(place / "runs")}, **settings)
    assert "export" not in sbatch_script(contained).split("\ntask=")[0], "an image has variables of its own"
    assert execute(place, contained) == 0
    assert told(place)["environ"]["FROM_SETUP"] == "a  b"
    assert {name: told(place)["environ"][name] for name in HOSTILE} == HOSTILE
    assert (place / "runs").is_dir(), "what is mounted must be there"


def test_each_node_of_a_het_job_has_a_rank_of_its_own(place: Path) -> None:
    assert execute(place, here(place, PPO, reward=REWARD_NODE)) == 0
    assert [told(place, rank)["argv"][-1] for rank in (0, 1)] == ["0", "1"]


def test_a_sweeps_task_runs_its_own_config(place: Path) -> None:
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    sweep = sweep_of(3, workdir=str(place), setup=[], slurm={})
    assert execute(place, sweep, CODE="75", **task) == -signal.SIGKILL
    assert (place / "scontrol").read_text().splitlines() == ["--oneliner show job 7_2", "requeue 7_2"], "of all tasks"
    assert told(place)["argv"][1] == "/shared/runs/reviews.jobs/1/config-2.yaml"


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_the_runs_exit_code_is_the_jobs(place: Path, code: int) -> None:
    assert execute(place, here(place), CODE=str(code)) == code
    assert not requeued(place)


@pytest.mark.parametrize("code", [75, 143])
def test_what_a_signal_stopped_is_queued_again(place: Path, code: int) -> None:
    assert execute(place, here(place), CODE=str(code), SLURM_RESTART_COUNT="19") == -signal.SIGKILL
    assert requeued(place)


def test_what_was_cancelled_is_not(place: Path) -> None:
    assert execute(place, here(place), CODE="75", STATE="COMPLETING") == 75
    assert not requeued(place)


def test_nor_what_was_queued_often_enough(place: Path) -> None:
    assert execute(place, here(place, max_requeues=3), CODE="75", SLURM_RESTART_COUNT="3") == 75
    assert not requeued(place)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_the_script_stops_the_run(place: Path, number: signal.Signals) -> None:
    with script_process(place, here(place), WAITS="1") as process:
        wait_until((place / "0.json").is_file, 60)
        process.send_signal(number)
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert (place / "scancel").read_text() == "--quiet --signal=TERM 7\n", "srun itself must not be signalled"
    assert requeued(place)
