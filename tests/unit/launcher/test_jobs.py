"""`scaleup render` and `scaleup submit`, from a config file to what is written, printed and handed to a scheduler."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleup.config.load import load
from scaleup.errors import Problem, ScaleupError
from scaleup.launcher.jobs import Request, plan_job, render, submit
from scaleup.launcher.render.sweep import sweep_points
from scaleup.plan.describe import Described
from tests.cli import differing
from tests.fake_facts import FACTS
from tests.unit.plan.conftest import RAW

CLUSTER = {"gpus_per_node": 2, "time": "1:00:00", "slurm": {"partition": "gpu"}}
ON_CLUSTER = {"parallel.num_processes": 4, "parallel.num_nodes": 2, "cluster": CLUSTER}
ON_KUBERNETES = {"container": {"image": "x"}, "kubernetes": {"volume_claim": "shared"}}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the config of a run on two nodes of two GPUs, with dotted keys changed, in a folder with its rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "scaleup.plan.resolve.describe_models", lambda models, *_: Described(dict.fromkeys(models, FACTS))
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(16)))

    def write_config(**changes: Any) -> Path:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(differing(RAW, {**ON_CLUSTER, **dotted})))
        return tmp_path / "config.yaml"

    return write_config


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a program of a name on the PATH, that keeps what it is given and then runs a line of shell."""

    def install(name: str, line: str) -> Path:
        (tmp_path / "bin").mkdir(exist_ok=True)
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >"{tmp_path}/given"\n{line}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        return tmp_path / "given"

    return install


def problems_of(request: Request) -> list[str]:
    with pytest.raises(ScaleupError) as caught:
        plan_job(request, None)
    return [f"{problem.where}: {problem.what}" for problem in caught.value.problems]


def test_a_job_is_planned_for_the_clusters_machines(write: Write) -> None:
    """This one has no GPU."""
    job, target = plan_job(Request(write()), None)
    assert target == "slurm"
    assert (job.num_nodes, job.node.gpus) == (2, 2)


def test_printing_writes_nothing(write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    render(Request(write(), ["train.max_steps=9"]), None)
    printed = capsys.readouterr().out
    folder = tmp_path / "runs" / "x.jobs" / "1"
    assert printed.startswith(f"==> {folder}/job.sbatch\n#!/bin/bash\n#SBATCH --job-name=x\n")
    assert f"\n==> {folder}/config.yaml\nstage: sft\n" in printed and "max_steps: 9\n" in printed
    assert not (tmp_path / "runs").exists()


def test_a_folder_holds_all_that_the_job_reads(write: Write, tmp_path: Path) -> None:
    file = write()
    render(Request(file, ["train.max_steps=9"]), tmp_path / "job")
    assert {path.name for path in (tmp_path / "job").iterdir()} == {"job.sbatch", "config.yaml", "logs"}
    assert load(tmp_path / "job" / "config.yaml") == load(file, ["train.max_steps=9"])
    assert f"set -- {tmp_path}/job/config.yaml\n" in (tmp_path / "job" / "job.sbatch").read_text()
    with pytest.raises(ScaleupError, match="is not empty"):
        render(Request(file), tmp_path / "job")


def test_submitting_prints_the_jobs_id(
    write: Write, scheduler: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = scheduler("sbatch", "echo '42;here'")
    for number in (1, 2):  # each keeps what it was submitted with
        submit(Request(write(train__max_steps=number)), dry_run=False)
        assert capsys.readouterr().out == "42\n"
        folder = tmp_path / "runs" / "x.jobs" / str(number)
        assert given.read_text().split() == ["--parsable", str(folder / "job.sbatch")]
        assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["max_steps"] == number


def test_what_the_scheduler_refuses_leaves_nothing(
    write: Write, scheduler: Callable[[str, str], Path], tmp_path: Path
) -> None:
    scheduler("sbatch", "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    with pytest.raises(ScaleupError, match="invalid partition specified: gpu"):
        submit(Request(write()), dry_run=False)
    assert not list((tmp_path / "runs").rglob("*.*atch"))


def test_a_machine_without_a_scheduler(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ScaleupError, match="sbatch: is not on this machine -> submit where it is"):
        submit(Request(write()), dry_run=False)
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_prints_the_command(write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    submit(Request(write()), dry_run=True)
    assert capsys.readouterr().out.endswith(f"\nsbatch --parsable {tmp_path}/runs/x.jobs/1/job.sbatch\n")
    assert not (tmp_path / "runs").exists()


def test_kubernetes_is_asked_where_the_config_is_for_it(
    write: Write, scheduler: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = scheduler("kubectl", "echo job.batch/x")
    submit(Request(write(cluster={"gpus_per_node": 2, **ON_KUBERNETES})), dry_run=False)
    file = tmp_path / "runs" / "x.jobs" / "1" / "job.yaml"
    assert given.read_text().split() == ["create", "--output=name", "--filename", str(file)]
    assert [document["kind"] for document in yaml.safe_load_all(file.read_text())] == ["ConfigMap", "Service", "Job"]
    assert capsys.readouterr().out == "job.batch/x\n"


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ('configmaps "x" already exists (AlreadyExists)', "kubectl delete --filename the job.yaml"),
        ("no matches for kind JobSet", "mend the cluster section"),
    ],
)
def test_what_was_made_before_kubernetes_refused_is_taken_back(
    write: Write, scheduler: Callable[[str, str], Path], tmp_path: Path, said: str, remedy: str
) -> None:
    deletes = f'[ "$1" = delete ] && echo "$@" >"{tmp_path}/deleted" && exit'
    scheduler("kubectl", f"{deletes}; echo configmap/x; echo service/x; echo '{said}' >&2; exit 1")
    cluster = differing(ON_KUBERNETES, {"kubernetes.namespace": "nlp"})
    with pytest.raises(ScaleupError) as caught:
        submit(Request(write(cluster={"gpus_per_node": 2, **cluster})), dry_run=False)
    assert said in str(caught.value) and remedy in str(caught.value)
    assert (tmp_path / "deleted").read_text() == "delete --namespace=nlp configmap/x service/x\n"


def test_all_mistakes_at_once(write: Write) -> None:
    cluster = {"nodes": 3, "gpus_per_node": 3, "time": "1"}
    found = problems_of(Request(write(cluster=cluster, data__train="nowhere.jsonl")))
    assert [line.partition(":")[0] for line in found[:3]] == ["cluster.nodes", "cluster.gpus_per_node", "cluster.time"]
    assert len(found) == 4 and "nowhere.jsonl" in found[3]


def test_a_config_without_a_cluster(write: Write) -> None:
    assert problems_of(Request(write(cluster=None, parallel__num_nodes=1))) == ["cluster: is missing"]


def test_a_sweep_is_the_product(write: Write) -> None:
    sweeps = ["train.learning_rate=[1e-5, 2.0e-5]", "data.text=['{text}', '{text}, [a: b]']"]
    job, _ = plan_job(Request(write(), sweeps=sweeps, max_parallel=2), None)
    assert [config.name for config in job.configs] == ["x-0", "x-1", "x-2", "x-3"]
    assert [config.train.learning_rate for config in job.configs] == [1e-5, 1e-5, 2e-5, 2e-5]
    assert [config.data.text for config in job.configs] == 2 * ["{text}", "{text}, [a: b]"]
    assert (job.name, job.is_sweep, job.folder.parent.name) == ("x", True, "x.jobs")


def test_refused_points_are_named(write: Write) -> None:
    request = Request(write(data__train="nowhere.jsonl"), sweeps=["train.warmup_steps=[1, 9, 8]"])
    everywhere, *own = problems_of(request)
    assert everywhere.startswith("data.train.0.path: ") and "nowhere.jsonl" in everywhere
    assert [line.partition(": is")[0] for line in own] == [
        "point 1 (train.warmup_steps=9): train.warmup_steps",
        "point 2 (train.warmup_steps=8): train.warmup_steps",
    ]


@pytest.mark.parametrize(
    ("sweeps", "what"),
    [
        (["train.seed"], "--sweep train.seed: lists no values"),
        (["train.seed=3"], "--sweep train.seed=3: lists no values"),
        (["train.seed=[]"], "lists no values"),
        (["train.seed=[1"], "lists no values"),
        (["name=[a, b]"], "is the same for all points"),
        (["cluster.time=[a, b]"], "is the same for all points"),
        (["train.seed=[1]", "train.seed=[2]"], "--sweep train.seed: is given twice"),
    ],
)
def test_what_is_no_sweep(sweeps: list[str], what: str) -> None:
    problems: list[Problem] = []
    sweep_points(sweeps, problems)
    assert any(what in str(problem) for problem in problems)


def test_a_sweeps_mistakes_stand_beside_the_configs(write: Write) -> None:
    request = Request(write(cluster={**CLUSTER, "tme": 3}), target="slurm", sweeps=["train.seed"], max_parallel=2)
    assert problems_of(request) == ["--sweep train.seed: lists no values", "cluster.tme: unknown key"]


def test_a_mistaken_cluster_section_is_not_missing(write: Write) -> None:
    [problem] = problems_of(Request(write(cluster=3)))
    assert problem.startswith("cluster: 3 ")


def test_a_script_without_a_scheduler_starts_no_container(write: Write) -> None:
    [problem] = problems_of(Request(write(cluster={**CLUSTER, "container": {"image": "x"}}), target="torchrun"))
    assert problem.startswith("cluster.container: the script of this target starts no container")


def test_a_sweep_needs_a_scheduler(write: Write) -> None:
    assert problems_of(Request(write(), target="torchrun", sweeps=["train.seed=[0, 1]"])) == [
        "--sweep: needs a scheduler"
    ]
    with pytest.raises(ScaleupError, match="torchrun has no scheduler to submit to"):
        submit(Request(write(), target="torchrun"), dry_run=True)


def test_points_that_need_unlike_nodes_are_no_job(write: Write) -> None:
    request = Request(write(cluster__gpus_per_node=None), sweeps=["parallel.num_nodes=[1, 2]"])
    assert problems_of(request) == ["--sweep: its points need unlike nodes, and are one job, which asks for one kind"]


def test_only_arrays_run_so_many_at_a_time(write: Write) -> None:
    assert problems_of(Request(write(), max_parallel=2)) == ["--max-parallel: is for a sweep on Slurm"]


def test_nodes_without_a_scheduler_need_no_cluster_section(write: Write) -> None:
    job, target = plan_job(Request(write(cluster=None), target="torchrun"), None)
    assert (target, job.num_nodes) == ("torchrun", 2)


@pytest.mark.parametrize("name", ["a\nscancel", "a\\b"])
def test_a_folder_that_no_script_can_name(write: Write, name: str) -> None:
    assert problems_of(Request(write(runs_dir=name)))[0].startswith("runs_dir: ")
