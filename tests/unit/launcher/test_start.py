"""From a loaded config to an exit code, with the processes themselves left out."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from scaleup import cli
from scaleup.artifacts.manifest import Manifest, write_manifest
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.errors import ScaleupError
from scaleup.launcher import peers as nodes
from scaleup.launcher import restarts
from scaleup.launcher.agent import NodeAgent
from scaleup.launcher.ending import RESUMABLE, Ending, Part
from scaleup.launcher.peers import Nodes
from scaleup.launcher.rendezvous import Rendezvous
from scaleup.launcher.start import granted_problems
from scaleup.plan.describe import Described
from scaleup.plan.types import Plan
from tests.unit.launcher.plans import group, plan_of

CONFIG = {
    "stage": "sft",
    "name": "x",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "text": "{text}"},
    "train": {"max_steps": 4},
}
Scaleup = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


@pytest.fixture
def scaleup(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scaleup:
    """The command line with a known model, and groups that end in a way of the test's choosing. Gives the exit code."""
    facts = plan_of(RunFolder(folder)).model
    monkeypatch.setattr(
        "scaleup.plan.resolve.describe_models", lambda models, *_: Described(dict.fromkeys(models, facts))
    )

    def command(*arguments: str, ends: Callable[[NodeAgent], int] = lambda agent: pytest.fail("launched")) -> int:
        monkeypatch.setattr(NodeAgent, "run_groups", lambda agent, watch: part(agent, ends(agent)))
        monkeypatch.setattr(sys, "argv", ["scaleup", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return command


def part(agent: NodeAgent, code: int) -> Part:
    """What a node's part leaves for the run to end with that code."""
    if code == RESUMABLE:
        agent.run.resumable_file.touch()
    return Part("group policy ended with exit code 1" if code == 1 else "")


def finish(agent: NodeAgent) -> int:
    """What a run leaves in the end."""
    agent.run.model.mkdir()
    (agent.run.model / "config.json").write_text("{}")
    (agent.run.model / "model.safetensors").touch()
    known: dict[str, Any] = {"scaleup_version": "0", "finished_at": "", "num_steps": 4, "files": {}}
    write_manifest(agent.run.manifest_file, Manifest(stage="sft", name="x", metrics={"loss": 0.5}, **known))
    return 0


def test_a_run_that_finishes(scaleup: Scaleup, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaleup("run", "config.yaml", ends=finish) == 0
    run = folder / "runs/x"
    assert "loss" in capsys.readouterr().out
    files = sorted(str(file.relative_to(run)) for file in run.rglob("*") if file.is_file())
    model = ["model/config.json", "model/model.safetensors"]
    told = ["attempts/1/nodes/0.json", "config.yaml", "data.json"]
    assert files == [*told, "launch/policy.yaml", "lineage.json", "manifest.json", *model, "plan.json"]
    assert RunFolder(run).config.name == Plan.read(run / "plan.json").name == "x"
    assert (run / "attempts/1/logs").is_dir()


def test_a_finished_run_is_not_run_again(scaleup: Scaleup, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scaleup("run", "config.yaml", ends=finish)
    for arguments in (["run", "config.yaml"], ["run", "config.yaml", "--resume"]):
        assert scaleup(*arguments) == 0
        assert "has finished already; nothing to do" in capsys.readouterr().out
    assert [path.name for path in (folder / "runs/x/attempts").iterdir()] == ["1"]


@pytest.mark.parametrize("code", [1, RESUMABLE])
def test_the_groups_exit_code_is_the_commands(scaleup: Scaleup, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaleup("run", "config.yaml", ends=lambda agent: code) == code
    assert ("was stopped and can go on" in capsys.readouterr().out) == (code == RESUMABLE)


def test_a_mistake_that_only_workers_find(scaleup: Scaleup, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(agent: NodeAgent) -> int:
        raise ScaleupError.of("data.train", "no row fits", "raise data.max_length")

    assert scaleup("run", "config.yaml", ends=refuse) == 2
    assert capsys.readouterr().err == "error: data.train: no row fits -> raise data.max_length\n"


def test_an_unfinished_run_goes_on_only_when_asked(scaleup: Scaleup, folder: Path) -> None:
    scaleup("run", "config.yaml", ends=lambda agent: RESUMABLE)
    (folder / "runs/x/resumable.json").touch()
    assert scaleup("run", "config.yaml") == 2
    assert (folder / "runs/x/resumable.json").is_file()
    assert scaleup("run", "config.yaml", "train.save_steps=1", "--resume", ends=finish) == 0
    assert not (folder / "runs/x/resumable.json").exists()
    assert RunFolder(folder / "runs/x").config.train.save_steps == 1  # type: ignore[attr-defined]
    assert sorted(path.name for path in (folder / "runs/x/attempts").iterdir()) == ["1", "2"]


def test_resume_of_what_never_began_begins_it(scaleup: Scaleup) -> None:
    assert scaleup("run", "config.yaml", "--resume", ends=finish) == 0


class TestRowsThatChanged:
    """A run that goes on knows the rows it began with."""

    @pytest.fixture
    def begun(self, scaleup: Scaleup, folder: Path) -> Path:
        (folder / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
        assert scaleup("run", "config.yaml", ends=lambda agent: RESUMABLE) == RESUMABLE
        return folder

    CHANGED = "data.train.0.path: 'rows.jsonl' has changed since the run began: 2 lines then, 3 lines now"

    def add_a_row(self, folder: Path) -> None:
        (folder / "rows.jsonl").write_text('{"text": "new"}\n{"text": "a"}\n{"text": "b"}\n')

    def test_are_refused(self, scaleup: Scaleup, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.add_a_row(begun)
        before = (begun / "runs/x/config.yaml").read_text()
        assert scaleup("run", "config.yaml", "--resume", "train.save_steps=1") == 2
        remedy = "put the old rows back, choose another name, or go on with these: --resume --accept-changed-data"
        assert capsys.readouterr().err == f"error: {self.CHANGED} -> {remedy}\n"
        assert (begun / "runs/x/config.yaml").read_text() == before, "nothing is written"

    def test_are_accepted_when_asked(self, scaleup: Scaleup, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.add_a_row(begun)
        accept = ("run", "config.yaml", "--resume", "--accept-changed-data")
        assert scaleup(*accept, ends=lambda agent: RESUMABLE) == RESUMABLE
        said = " ".join(capsys.readouterr().out.split())
        assert f"note: {self.CHANGED} note: changed rows were accepted: the trajectory is another one" in said
        assert "the rows that are held out" in said
        assert json.loads((begun / "runs/x/data.json").read_text())["accepted"] == [self.CHANGED]
        assert scaleup("run", "config.yaml", "--resume", ends=finish) == 0, "these are the run's rows now"
        assert "changed rows" not in capsys.readouterr().out

    def test_held_out_rows_too(self, scaleup: Scaleup, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command = ("run", "config.yaml", "data.validation=held.jsonl", "data.test=held.jsonl", "--resume")
        (folder / "held.jsonl").write_text('{"text": "c"}\n')
        scaleup(*command, ends=lambda agent: RESUMABLE)
        (folder / "held.jsonl").write_text('{"text": "d"}\n')
        assert scaleup(*command) == 2
        [error] = capsys.readouterr().err.splitlines()  # stage sft does not read data.test
        assert error.startswith("error: data.validation.0.path: 'held.jsonl' has changed since the run began: as many")

    def test_rows_that_moved_are_the_same(self, scaleup: Scaleup, begun: Path) -> None:
        (begun / "disk").mkdir()
        (begun / "rows.jsonl").rename(begun / "disk/renamed.jsonl")
        moved = ("data.root=disk", "data.train=renamed.jsonl")
        assert scaleup("run", "config.yaml", *moved, "--resume", ends=finish) == 0

    def test_what_reads_them_is_not_their_place(
        self, scaleup: Scaleup, begun: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (begun / "rows.jsonl").rename(begun / "renamed.jsonl")
        source = "data.train=[{path: renamed.jsonl, max_rows: 1}]"
        assert scaleup("run", "config.yaml", source, "--resume") == 2
        assert "differs in data.train.0.max_rows -> choose" in capsys.readouterr().err

    def test_a_run_of_an_earlier_version_goes_on(
        self, scaleup: Scaleup, begun: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (begun / "runs/x/data.json").unlink()
        self.add_a_row(begun)
        assert scaleup("run", "config.yaml", "--resume", ends=lambda agent: RESUMABLE) == RESUMABLE
        assert "did not keep what its rows are known by" in " ".join(capsys.readouterr().out.split())
        (begun / "rows.jsonl").write_text('{"text": "b"}\n')
        assert scaleup("run", "config.yaml", "--resume") == 2, "from then on they are known"

    def test_accepting_is_for_a_run_that_goes_on(
        self, scaleup: Scaleup, capsys: pytest.CaptureFixture[str], folder: Path
    ) -> None:
        assert scaleup("run", "config.yaml", "--accept-changed-data") == 2
        assert capsys.readouterr().err.startswith("error: --accept-changed-data: is for a run that goes on")


class TestProjectThatMoved:
    """All of it: the run, its rows, and the model and the tokenizer that lie beside them."""

    @pytest.fixture
    def moved(self, scaleup: Scaleup, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        old, new = folder / "old", folder / "new"
        (old / "m").mkdir(parents=True)
        (old / "m/config.json").write_text('{"model_type": "llama"}')
        (old / "m/model.safetensors").write_bytes(bytes(3 << 20))
        (old / "rows.jsonl").write_text('{"text": "a"}\n')
        (old / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "model": {"path": "m", "tokenizer": "./m"}}))
        monkeypatch.chdir(old)
        assert scaleup("run", "config.yaml", ends=lambda agent: RESUMABLE) == RESUMABLE
        old.rename(new)
        monkeypatch.chdir(new)
        return new

    def test_goes_on(self, scaleup: Scaleup, moved: Path) -> None:
        assert scaleup("run", "config.yaml", "--resume", ends=finish) == 0
        assert str(moved.parent / "old") not in (moved / "runs/x/config.yaml").read_text()

    def test_not_with_another_model(self, scaleup: Scaleup, moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Of the same size."""
        (moved / "m/model.safetensors").write_bytes(bytes(2 << 20) + b"\1" * (1 << 20))
        assert scaleup("run", "config.yaml", "--resume") == 2
        assert "holds another run, which differs in model.path, model.tokenizer ->" in capsys.readouterr().err


def test_a_finished_run_is_of_its_rows(scaleup: Scaleup, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of another file are no reason to say that all is done."""
    scaleup("run", "config.yaml", ends=finish)
    (folder / "same.jsonl").write_bytes((folder / "rows.jsonl").read_bytes())
    (folder / "other.jsonl").write_text('{"text": "b"}\n')
    assert scaleup("run", "config.yaml", "data.train=same.jsonl") == 0
    assert scaleup("run", "config.yaml", "data.train=other.jsonl") == 2
    assert "holds another run, which differs in data.train.0.path" in capsys.readouterr().err


def test_a_run_that_was_moved_goes_on_where_it_is(scaleup: Scaleup, folder: Path) -> None:
    scaleup("run", "config.yaml", ends=lambda agent: RESUMABLE)
    (folder / "disk").mkdir()
    (folder / "runs/x").rename(folder / "disk/y")
    assert scaleup("run", "config.yaml", "runs_dir=disk", "name=y", "--resume", ends=finish) == 0
    moved = RunFolder(folder / "disk/y")
    assert moved.manifest_file.is_file() and not (folder / "runs/x").exists()
    for text in (moved.config_file.read_text(), moved.plan_file.read_text()):
        assert str(folder / "runs") not in text


def test_a_run_that_is_running_is_not_started_again(scaleup: Scaleup, folder: Path) -> None:
    with RunFolder(folder / "runs/x").locked():
        assert scaleup("run", "config.yaml") == 2


def test_plan_prints_json(scaleup: Scaleup, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaleup("plan", "config.yaml", "--json") == 0
    assert Plan.model_validate(json.loads(capsys.readouterr().out)).run_folder == str(folder / "runs/x")
    assert scaleup("plan", "config.yaml") == 0
    assert "8 rows x 1 accumulation x 1 processes = 8" in capsys.readouterr().out
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("prompt", ["Review: {text}", "two\nlines", 'a "quote"', "🙂 é", "- no", "a\x7fb", "x" * 300])
def test_prompts_of_the_command_line(scaleup: Scaleup, folder: Path, prompt: str) -> None:
    """Of a config file and of a finished run, whatever they hold."""
    generate = {"stage": "generate", "name": "g", "model": {"path": "gpt2"}, "generation": {"prompts": ["other"]}}
    (folder / "generate.yaml").write_text(yaml.safe_dump(generate))
    scaleup("run", "config.yaml", ends=finish)
    seen: list[Any] = []
    for target in ("generate.yaml", "runs/x"):
        prompts = ["--prompt", prompt, "--prompt", "b"]
        assert scaleup("generate", target, *prompts, ends=lambda agent: seen.append(agent.run.config) or 1) == 1
    assert [config.generation.prompts for config in seen] == [[prompt, "b"]] * 2


def test_evaluation_of_a_finished_run(scaleup: Scaleup, folder: Path) -> None:
    scaleup("run", "config.yaml", "data.test=rows.jsonl", ends=finish)
    for number in ("1", "2"):
        assert scaleup("evaluate", "runs/x", "evaluation.max_samples=1", ends=lambda agent: 1) == 1
        config: Any = RunFolder(folder / "runs/x/evaluations" / number).config
        assert config.model.path == str(folder / "runs/x")
        assert config.baseline.path == "builtin:tiny-llama"
        assert (config.evaluation.max_samples, config.data.text) == (1, "{text}")


class TestNode:
    @pytest.fixture
    def prepared(self, run: RunFolder, folder: Path) -> RunFolder:
        two = {**CONFIG, "parallel": {"num_processes": 4, "num_nodes": 2}}
        (folder / "config.yaml").write_text(yaml.safe_dump(two))
        nodes = {"num_processes": 4, "num_nodes": 2, "main_address": "localhost", "main_port": 1}
        plan_of(run, group(**nodes)).save(run.plan_file)
        return run

    def test_takes_part_in_the_attempt_that_node_0_begins(
        self, scaleup: Scaleup, prepared: RunFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And not in one that node 0 was at when it was killed."""
        leader = Nodes(prepared, 0, 2)
        leader.enter(prepared.new_attempt())
        started: list[tuple[int, int]] = []

        def begin_and_end() -> Attempt | None:
            if not started:
                leader.enter(prepared.new_attempt(), Rendezvous("localhost", 1))
            return found()

        def run_part(agent: NodeAgent) -> int:
            started.append((agent.node_rank, agent.attempt.number))
            leader.close(Ending("finished"), 0)
            return 0

        found = nodes.Newcomer(prepared, 60).attempt
        monkeypatch.setattr(restarts, "Newcomer", lambda run, seconds: SimpleNamespace(attempt=begin_and_end))
        assert scaleup("run", "config.yaml", "--node-rank=1", ends=run_part) == 0
        assert started == [(1, 2)]

    def test_without_node_0(
        self, scaleup: Scaleup, prepared: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What it wrote before it was killed is no sign of life."""
        monkeypatch.setattr(restarts, "NOTICE_SECONDS", 0.2)
        Nodes(prepared, 0, 2).enter(prepared.new_attempt())
        assert scaleup("run", "config.yaml", "parallel.timeout_seconds=1", "--node-rank=1") == 2
        said, error = capsys.readouterr()
        assert said == f"waiting for node 0 to begin in {prepared.path}\n"
        assert "node 0: its agent gave no sign of life for 1 s -> start the same command on the first node" in error

    def test_when_node_0_is_refused(
        self, scaleup: Scaleup, prepared: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It says so too, and does not wait."""
        two = ("run", "config.yaml", "parallel.num_processes=2", "parallel.num_nodes=2")
        asked = SimpleNamespace(attempt=lambda: scaleup(*two, "data.train=gone.jsonl") and None)
        monkeypatch.setattr(restarts, "Newcomer", lambda run, seconds: asked)
        assert scaleup(*two, "--node-rank=1") == 2
        both = capsys.readouterr().err.splitlines()
        assert "gone.jsonl" in both[0] and both[: len(both) // 2] == both[len(both) // 2 :]

    def test_that_the_config_does_not_have(self, scaleup: Scaleup, capsys: pytest.CaptureFixture[str]) -> None:
        """Nobody waits for a first node that waits for nobody."""
        assert scaleup("run", "config.yaml", "--node-rank=1") == 2
        said, error = capsys.readouterr()
        assert said == "" and "error: --node-rank: the run has no node 1, but 1 -> set parallel.num_nodes" in error

    def test_that_the_run_does_not_have(
        self, scaleup: Scaleup, prepared: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        attempt = prepared.new_attempt()
        monkeypatch.setattr(restarts, "Newcomer", lambda run, seconds: SimpleNamespace(attempt=lambda: attempt))
        assert scaleup("run", "config.yaml", "--node-rank=2") == 2
        assert "error: --node-rank: the run has no node 2, but 2 -> use 0 to 1" in capsys.readouterr().err
        plan_of(prepared).save(prepared.plan_file)
        assert scaleup("run", "config.yaml", "--node-rank=1") == 2
        assert "the run has no node 1, but 1 -> set parallel.num_nodes" in capsys.readouterr().err

    def test_of_a_finished_run(self, scaleup: Scaleup, prepared: RunFolder) -> None:
        finish(SimpleNamespace(run=prepared))  # type: ignore[arg-type]
        assert scaleup("run", "config.yaml", "--node-rank=1") == 0

    def test_of_a_bad_config(self, scaleup: Scaleup, capsys: pytest.CaptureFixture[str]) -> None:
        assert scaleup("run", "config.yaml", "train.sede=1", "--node-rank=1") == 2
        assert "error: train.sede: unknown key" in capsys.readouterr().err


class TestGranted:
    def test_no_job(self, run: RunFolder) -> None:
        assert list(granted_problems(plan_of(run, group(num_nodes=2, num_processes=2)), {})) == []

    @pytest.mark.parametrize(("granted", "refused"), [("1", True), ("2", False), ("3", False)])
    def test_a_job(self, run: RunFolder, granted: str, refused: bool) -> None:
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": granted}
        assert bool(list(granted_problems(plan_of(run, group(num_nodes=2, num_processes=2)), job))) == refused

    @pytest.mark.parametrize("value", ["", "x"])
    def test_variables_that_are_empty_or_no_numbers(self, run: RunFolder, value: str) -> None:
        names = ("SLURM_JOB_NUM_NODES", "SLURM_HET_SIZE")
        plan = plan_of(run, group(num_nodes=2, num_processes=2))
        for job in ("7", ""):
            assert list(granted_problems(plan, {"SLURM_JOB_ID": job, **dict.fromkeys(names, value)})) == []
        counted = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_HET_SIZE": value}
        assert len(list(granted_problems(plan, counted))) == 1

    def test_a_heterogeneous_job(self, run: RunFolder) -> None:
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_HET_SIZE": "2"}
        job |= {f"SLURM_JOB_NUM_NODES_HET_GROUP_{number}": "1" for number in range(2)}
        assert list(granted_problems(plan_of(run, group(num_nodes=2, num_processes=2)), job)) == []


def test_an_error_of_the_agents_own_is_a_sentence(scaleup: Scaleup, capsys: pytest.CaptureFixture[str]) -> None:
    def ends(agent: NodeAgent) -> int:
        raise OSError(24, "Too many open files", str(agent.attempt.logs))

    assert scaleup("run", "config.yaml", ends=ends) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: node 0: [Errno 24] Too many open files: ") and "Traceback" not in error


class TestRefusedOnTheFirstNode:
    NODES = ("parallel.num_nodes=2", "parallel.num_processes=2")

    def test_more_nodes_than_granted(
        self, scaleup: Scaleup, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
        assert scaleup("run", "config.yaml", *self.NODES) == 2
        assert capsys.readouterr().err == (
            "error: parallel.num_nodes: the run needs 2 nodes, and job 7 was granted 1 -> ask for --nodes=2, or use "
            "fewer\n"
        )

    def test_a_port_in_use(self, scaleup: Scaleup, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            assert scaleup("run", "config.yaml", *self.NODES, f"parallel.main_port={port}") == 2
        error = capsys.readouterr().err
        assert f"error: parallel.main_port: port {port} of {socket.gethostname()} cannot be used: Address al" in error
        assert not (folder / "runs").exists()
