"""Jobs that `scaleup submit` hands to a real Slurm of two nodes: they end as the same runs do without it, also when
they were preempted, and are stopped, refused and cancelled as they should."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import small_runs
from tests.cli import (
    Result,
    alive,
    differing,
    folder_of,
    largest_loss_difference,
    largest_weight_difference,
    logs,
    metrics,
    reached,
    run,
    scaleup,
    wait_until,
    worker_ids,
    write_config,
)
from tests.slurm import Slurm, slurm
from tests.small_runs import same_rollouts, write_rows

pytestmark = pytest.mark.slow
NUM_STEPS = 400
CLUSTER = {"time": "0:30:00", "signal_seconds": 30, "cpus_per_node": 1, "slurm": {"partition": "main"}}
SFT = differing(
    small_runs.SFT,
    {"train.max_steps": NUM_STEPS, "parallel": {"num_processes": 2, "num_nodes": 2}, "cluster": CLUSTER},
)
PPO = differing(small_runs.PPO, {"reward.own_nodes": True, "cluster": CLUSTER})
ENDLESS = {"train.max_steps": 1_000_000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm() as made:
        yield made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slurm runs")  # a name that scripts have to quote
    write_rows(folder)
    return folder


@pytest.fixture(scope="module")
def alone(place: Path, pool: ThreadPoolExecutor) -> Future[Path]:
    """On one process, without Slurm."""
    changes = {"name": "alone", "parallel": {}, "train.per_device_train_batch_size": 4}
    return pool.submit(run, differing(SFT, changes), cwd=place)


def submit(config: Mapping[str, Any], cluster: Slurm, place: Path, *arguments: str) -> str:
    """The job's id."""
    result = scaleup("submit", write_config(config, place), *arguments, cwd=place, env=cluster.environment)
    assert result.code == 0, result.stderr
    return result.stdout.strip()


def job_log(config: Mapping[str, Any], place: Path) -> str:
    return logs(place / "runs" / f"{config['name']}.jobs")


def completed(config: Mapping[str, Any], job: str, cluster: Slurm, place: Path) -> Path:
    folder = folder_of(config, place)
    found = cluster.wait(job)
    assert found["JobState"] == "COMPLETED", f"{found}\n{job_log(config, place)}\n{logs(folder)}"
    assert alive(worker_ids(folder)) == []
    return folder


def when(reached: Callable[[Path], bool], config: Mapping[str, Any], job: str, cluster: Slurm, place: Path) -> Path:
    """The run's folder, once that holds of it; the job must not have ended before."""
    folder = folder_of(config, place)
    try:
        wait_until(lambda: reached(folder), every=0.02)
    except AssertionError:
        said = f"{cluster.job(job)}\n{job_log(config, place)}\n{logs(folder)}"
        raise AssertionError(f"job {job} did not come so far: {said}") from None
    return folder


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("zero2", marks=pytest.mark.long)])
def test_two_nodes(strategy: str, cluster: Slurm, place: Path, alone: Future[Path]) -> None:
    config = differing(SFT, {"name": f"nodes-{strategy}", "parallel.strategy": strategy})
    folder = completed(config, submit(config, cluster, place), cluster, place)
    assert [step["step"] for step in metrics(folder)] == list(range(1, NUM_STEPS + 1))
    assert largest_loss_difference(alone.result(), folder) <= 1e-4
    assert largest_weight_difference(alone.result(), folder) <= 1e-4
    nodes = [json.loads(file.read_text())["node"] for file in sorted((folder / "attempts/1/workers").glob("*.json"))]
    assert nodes == [0, 1]
    said = [line[:3] for line in job_log(config, place).splitlines()]
    assert "0: " in said and "1: " not in said, "one node shows the progress"


def test_ppo_as_a_heterogeneous_job(cluster: Slurm, place: Path, colocated: Future[Path]) -> None:
    config = differing(PPO, {"name": "het", "cluster.reward": {"memory": "2G"}})
    folder = completed(config, submit(config, cluster, place), cluster, place)
    same_rollouts(folder, colocated.result(), 8)
    given = yaml.safe_load((place / "runs/het.jobs/1/config.yaml").read_text())
    assert given["reward"]["parallel"]["device"] == "cpu", "what its own node has, whatever the first one finds"


@pytest.mark.long
def test_ppo_in_one_allocation(cluster: Slurm, place: Path, colocated: Future[Path]) -> None:
    config = PPO | {"name": "one-allocation"}
    folder = completed(config, submit(config, cluster, place), cluster, place)
    same_rollouts(folder, colocated.result(), 8)


def test_preempted_queued_again_and_resumed_is_straight(cluster: Slurm, place: Path, alone: Future[Path]) -> None:
    config = SFT | {"name": "preempted"}
    job = submit(config, cluster, place)
    folder = when(reached(5), config, job, cluster, place)
    urgent = ["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"]
    other = cluster.command("sbatch", "--parsable", *urgent, cwd=place)
    assert cluster.wait(other)["JobState"] == "COMPLETED"
    assert not (folder / "manifest.json").exists(), "it was to be preempted before it had finished"
    assert completed(config, job, cluster, place) == folder
    assert cluster.job(job)["Restarts"] == "1"
    assert sorted(attempt.name for attempt in (folder / "attempts").iterdir()) == ["1", "2"]
    assert [step["step"] for step in metrics(folder)] == list(range(1, NUM_STEPS + 1))
    assert largest_loss_difference(alone.result(), folder) <= 1e-4
    assert largest_weight_difference(alone.result(), folder) <= 1e-4


def test_the_time_limit(cluster: Slurm, place: Path) -> None:
    """Slurm tells the job before it is over: it saves on all ranks and is queued again."""
    config = differing(SFT, {"name": "limit", "cluster.time": "0:01:00", **ENDLESS})
    job = submit(config, cluster, place)
    folder = when(lambda folder: (folder / "resumable.json").is_file(), config, job, cluster, place)
    try:
        wait_until(lambda: cluster.job(job)["Restarts"] == "1", 60, every=0.2)
    except AssertionError:
        raise AssertionError(f"{cluster.job(job)}\n{job_log(config, place)}\n{logs(folder)}") from None
    cluster.command("scancel", job)
    cluster.wait(job)
    saved = json.loads((folder / "resumable.json").read_text())["step"]
    assert (folder / "checkpoints" / f"step-{saved:08d}" / "checkpoint.json").is_file()
    assert alive(worker_ids(folder)) == []


def test_cancelled(cluster: Slurm, place: Path) -> None:
    """By its user: it saves, and is not queued again."""
    config = differing(SFT, {"name": "cancelled", **ENDLESS})
    job = submit(config, cluster, place)
    folder = when(reached(5), config, job, cluster, place)
    cluster.command("scancel", job)
    found = cluster.wait(job)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0")
    wait_until(lambda: alive(worker_ids(folder)) == [] and cluster.command("squeue", "-h", "-j", job) == "")
    assert (folder / "resumable.json").is_file(), job_log(config, place)
    assert cluster.state(job) == "CANCELLED"


def test_fewer_nodes_than_it_needs(cluster: Slurm, place: Path) -> None:
    config = SFT | {"name": "fewer"}
    rendered = scaleup("render", write_config(config, place), "-o", "fewer job", cwd=place, env=cluster.environment)
    assert rendered.code == 0, rendered.stderr
    job = cluster.command("sbatch", "--parsable", "--nodes=1", place / "fewer job" / "job.sbatch", cwd=place)
    found = cluster.wait(job)
    assert (found["JobState"], found["ExitCode"]) == ("FAILED", "2:0")
    said = logs(place / "fewer job")
    assert f"error: parallel.num_nodes: the run needs 2 nodes, and job {job} was granted 1 -> ask for --nodes=2" in said
    assert not folder_of(config, place).exists()


def test_a_mistake_that_only_the_nodes_find(cluster: Slurm, place: Path) -> None:
    """All nodes end with it, and it is the job's exit code; none waits for the first one."""
    (place / "soon gone.jsonl").write_bytes((place / "rows.jsonl").read_bytes())
    config = differing(SFT, {"name": "mistaken", "data.train": "soon gone.jsonl"})
    rendered = scaleup("render", write_config(config, place), "-o", "mistaken job", cwd=place, env=cluster.environment)
    assert rendered.code == 0, rendered.stderr
    (place / "soon gone.jsonl").unlink()
    job = cluster.command("sbatch", "--parsable", place / "mistaken job" / "job.sbatch", cwd=place)
    found = cluster.wait(job)
    said = logs(place / "mistaken job")
    assert (found["JobState"], found["ExitCode"]) == ("FAILED", "2:0"), said
    for node in (0, 1):
        assert any(line.startswith(f"{node}: error: ") and "gone.jsonl" in line for line in said.splitlines()), said


def test_what_slurm_refuses(cluster: Slurm, place: Path) -> None:
    config = differing(SFT, {"name": "refused", "cluster.slurm.partition": "nowhere"})
    result: Result = scaleup("submit", write_config(config, place), cwd=place, env=cluster.environment)
    assert result.code == 2
    assert result.stderr.startswith("error: sbatch: ") and "invalid partition" in result.stderr
    assert not list((place / "runs").glob("refused*/**/*.sbatch"))


def test_a_sweep_is_an_array(cluster: Slurm, place: Path) -> None:
    config = differing(SFT, {"name": "sweep", "parallel": {}, "train.max_steps": 3})
    job = submit(config, cluster, place, "--sweep", "train.seed=[1,2]")
    for number in (0, 1):
        one = {**config, "name": f"sweep-{number}"}
        folder = completed(one, f"{job}_{number}", cluster, place)
        assert f"seed: {number + 1}" in (folder / "config.yaml").read_text()


def test_a_search_is_an_array_of_trials(cluster: Slurm, place: Path) -> None:
    """`scaleup search` then finds all of them, and starts none."""
    config = differing(SFT, {"parallel": {"num_processes": 1, "strategy": "single"}, "train.max_steps": 3})
    study = {
        "study": "rates",
        "run": {"config": config},
        "space": {"train.learning_rate": {"choice": [1e-3, 1e-2]}},
        "method": "grid",
        "objectives": {"loss": "minimize"},
    }
    (place / "rates.yaml").write_text(yaml.safe_dump(study))
    result: Result = scaleup("submit", "rates.yaml", "--max-parallel", "1", cwd=place, env=cluster.environment)
    assert result.code == 0, result.stderr
    for number in (0, 1):
        completed({**config, "name": f"rates-{number:03d}"}, f"{result.stdout.strip()}_{number}", cluster, place)
    found: Result = scaleup("search", "rates.yaml", "--json", cwd=place)
    assert found.code == 0, found.stderr
    assert [trial["state"] for trial in json.loads(found.stdout)["trials"]] == ["finished", "finished"]
    assert "begins" not in found.stderr
    again: Result = scaleup("submit", "rates.yaml", cwd=place, env=cluster.environment)
    assert (again.code, again.stderr) == (
        2,
        "error: study: all its trials have ended -> scaleup search shows what they came to\n",
    )


def test_a_pipeline_is_a_job_for_each_run(cluster: Slurm, place: Path) -> None:
    """Each begins when those that it needs have ended well, and has the nodes that it asks for."""
    first = differing(SFT, {"name": "chain-first", "train.max_steps": 6})
    second = differing(SFT, {"name": "chain-second", "parallel": {}, "train.max_steps": 3, "model.path": "${first}"})
    lost = differing(second, {"name": "chain-lost", "model.path": "${second}", "cluster.setup": ["exit 3"]})
    after = differing(second, {"name": "chain-after", "model.path": "${lost}"})
    runs = {"first": first, "second": second, "lost": lost, "after": after}
    file = place / "chain.yaml"
    file.write_text(yaml.safe_dump({"pipeline": "chain", "runs": {name: {"config": runs[name]} for name in runs}}))
    result: Result = scaleup("submit", file.name, cwd=place, env=cluster.environment)
    assert result.code == 0, result.stderr
    jobs = dict(line.split() for line in result.stdout.splitlines())
    assert list(jobs) == list(runs)
    assert cluster.job(jobs["second"])["Dependency"].startswith(f"afterok:{jobs['first']}")
    assert [cluster.job(jobs[name])["NumNodes"].partition("-")[0] for name in ("first", "second")] == ["2", "1"]
    completed(first, jobs["first"], cluster, place)
    folder = completed(second, jobs["second"], cluster, place)
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["path"] == str(place / "runs/chain-first")
    assert cluster.wait(jobs["lost"])["ExitCode"] == "3:0"
    assert cluster.wait(jobs["after"])["JobState"] == "CANCELLED", "what it needs will never be there"
    again: Result = scaleup("submit", file.name, "--dry-run", cwd=place, env=cluster.environment)
    assert again.code == 0, again.stderr
    commands = [line for line in again.stdout.splitlines() if line.startswith("sbatch ")]
    assert [line.split("/runs/")[1].split(".jobs")[0] for line in commands] == ["chain-lost", "chain-after"]
    assert "--dependency=afterok:<lost>" in commands[1]


def test_the_doctor_on_each_node_of_a_job(cluster: Slurm, place: Path) -> None:
    """These two nodes are one machine, which it says."""
    config = write_config(SFT | {"name": "doctor"}, place)
    ask = f'srun --label bash -c "exec scaleup doctor {config.name} --nodes 2 --node-rank \\$SLURM_PROCID"'
    options = ["--parsable", "--nodes=2", "--ntasks-per-node=1", "--output=doctor.log", "--wrap", ask]
    found = cluster.wait(cluster.command("sbatch", *options, cwd=place))
    said = (place / "doctor.log").read_text()
    assert found["JobState"] == "COMPLETED", said
    for node in (0, 1):
        lines = [line for line in said.splitlines() if line.startswith(f"{node}: ")]
        assert any("all 2 met in" in line for line in lines), said
        assert any("two agents of one machine" in line for line in lines), said
