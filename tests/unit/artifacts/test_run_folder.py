from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.manifest import file_sizes
from scaleup.artifacts.run_folder import RunFolder, differing_keys, finished_run, is_among
from scaleup.config.load import dump, load_mapping
from scaleup.config.run import RunConfig
from scaleup.errors import ScaleupError
from tests.cli import differing

RAW: dict[str, Any] = {
    "stage": "sft",
    "name": "x",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "text": "{text}"},
    "train": {"max_steps": 4, "save_steps": 2},
}


def config(**changes: Any) -> RunConfig:
    loaded = load_mapping(differing(RAW, {key.replace("__", "."): value for key, value in changes.items()}))
    assert loaded.config is not None
    assert loaded.problems == []
    return loaded.config


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """An unfinished run of the config."""
    run = RunFolder(tmp_path / "runs" / "x")
    run.path.mkdir(parents=True)
    run.config_file.write_text(dump(config()), encoding="utf-8")
    return run


def finish(run: RunFolder) -> None:
    run.finish("sft", "x", {"loss": 1.0, "best": None}, 4)


def refusal(run: RunFolder, wanted: RunConfig) -> str:
    with pytest.raises(ScaleupError) as caught:
        run.state(wanted)
    [problem] = caught.value.problems
    assert problem.where == f"runs_dir/name ({run.path})"
    assert problem.remedy == "choose another name"
    return problem.what


class TestState:
    def test_absent(self, tmp_path: Path) -> None:
        assert RunFolder(tmp_path / "none").state(config()) == "absent"
        assert RunFolder(tmp_path).state(config()) == "absent"  # an empty folder, say a mounted volume

    def test_unfinished_then_finished(self, run: RunFolder) -> None:
        assert run.state(config()) == "unfinished"
        run.resumable_file.touch()
        assert run.state(config()) == "unfinished"
        finish(run)
        assert run.state(config()) == "finished"

    def test_what_does_not_move_the_trajectory_may_change(self, run: RunFolder) -> None:
        other = config(
            train__save_steps=1,
            train__logging_steps=3,
            parallel__timeout_seconds=5,
            parallel__max_restarts=3,
            generation__max_new_tokens=3,
            evaluation={"metrics": ["rouge"]},
        )
        assert run.state(other) == "unfinished"

    def test_the_place_of_a_run_and_its_name_may_change(self, run: RunFolder) -> None:
        assert run.state(config(runs_dir="elsewhere", name="y")) == "unfinished"

    def test_a_source_is_named_by_its_place(self, run: RunFolder) -> None:
        other = config(data__train=["other.jsonl"])
        assert refusal(run, other) == "holds another run, which differs in data.train.0.path"
        two = config(data__train=["rows.jsonl", "other.jsonl"])
        assert refusal(run, two) == "holds another run, which differs in data.train"

    def test_anything_else_makes_it_another_run(self, run: RunFolder) -> None:
        assert refusal(run, config(train__seed=1)) == "holds another run, which differs in train.seed"
        many = config(
            train__seed=1, train__max_steps=5, train__weight_decay=0.1, data__max_length=9, mixed_precision="bf16",
            gradient_checkpointing=True,
        )  # fmt: skip
        expected = "holds another run, which differs in data.max_length, gradient_checkpointing, mixed_precision, "
        assert refusal(run, many) == f"{expected}train.max_steps, train.seed and 1 more"
        finish(run)
        assert "differs in train.seed" in refusal(run, config(train__seed=1))

    def test_another_stage(self, run: RunFolder) -> None:
        raw = {key: value for key, value in RAW.items() if key != "train"}
        other = load_mapping({**raw, "stage": "generate"}).config
        assert other is not None
        differing = "gradient_checkpointing, stage, torch_compile, train, use_liger_kernel"
        assert f"differs in {differing}" in refusal(run, other)

    def test_something_that_is_no_run(self, tmp_path: Path) -> None:
        (tmp_path / "photo.jpg").touch()
        assert refusal(RunFolder(tmp_path), config()) == "exists and is no run folder"
        assert refusal(RunFolder(tmp_path / "photo.jpg"), config()) == "exists and is no run folder"

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"[1]",
            b"a: 1",
            b"stage: sft",
            b"stage: zork",
            b"stage: [sft]",
            b"{",
            b"\xff",
            b"text",
            b"[" * 500,
            b"&a [*a]",
        ],
    )
    def test_an_unreadable_config(self, run: RunFolder, content: bytes) -> None:
        run.config_file.write_bytes(content)
        assert refusal(run, config()) == "holds a run with an unreadable config.yaml"
        with pytest.raises(ScaleupError, match=r"config\.yaml: cannot be read"):
            assert RunFolder(run.path).config


def test_the_config_is_read_back(run: RunFolder) -> None:
    assert run.config == config()


def test_the_manifest_comes_with_sizes_and_ends_the_run(run: RunFolder) -> None:
    assert run.manifest() is None
    run.resumable_file.write_text("{}")
    run.metrics_file.write_text("12345")
    (run.path / "model").mkdir()
    (run.path / "model" / "config.json").write_text("{}")
    finish(run)
    manifest = run.manifest()
    assert manifest is not None
    assert (manifest.stage, manifest.name, manifest.num_steps) == ("sft", "x", 4)
    assert manifest.metrics == {"loss": 1.0, "best": None}
    assert manifest.files == {"model/config.json": 2, "metrics.jsonl": 5}
    assert not run.resumable_file.exists()


def test_finished_run(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ScaleupError, match="is no run folder"):
        finished_run(tmp_path)
    with pytest.raises(ScaleupError, match="is a run that has not finished -> continue it with --resume"):
        finished_run(run.path)
    finish(run)
    assert finished_run(run.path) == run


def test_finished_run_is_absolute(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(run)
    monkeypatch.chdir(run.path.parent)
    assert finished_run(Path("x")).path == run.path


class TestAttempts:
    def test_are_counted(self, run: RunFolder) -> None:
        assert [run.new_attempt().path.name for _ in range(11)] == [str(number) for number in range(1, 12)]

    def test_the_newest_is_the_one_that_all_nodes_share(self, run: RunFolder) -> None:
        assert run.newest_attempt() is None
        made = [run.new_attempt() for _ in range(11)][-1]
        assert run.newest_attempt() == made
        assert made.number == 11

    def test_others_names_do_not_count(self, run: RunFolder) -> None:
        for name in ("7-node1", "old", "9.bak"):
            (run.path / "attempts" / name).mkdir(parents=True)
        assert run.new_attempt().path.name == "1"
        (run.path / "attempts" / "41").mkdir()
        assert run.new_attempt().path.name == "42"

    def test_have_their_folders(self, run: RunFolder) -> None:
        attempt = run.new_attempt()
        assert attempt.logs.is_dir()
        assert attempt.errors.is_dir()
        assert attempt.workers.is_dir()
        assert attempt.nodes.is_dir()
        assert run.attempt(1) == attempt


class TestFirstError:
    @staticmethod
    def error(rank: str, time: float, *problems: str) -> dict[str, Any]:
        found = [{"where": "data", "what": what, "remedy": ""} for what in problems]
        return {"rank": rank, "time": time, "problems": found, "error": "x", "traceback": ""}

    def test_none(self, run: RunFolder) -> None:
        assert run.new_attempt().first_error() is None

    def test_the_earliest(self, run: RunFolder) -> None:
        attempt = run.new_attempt()
        for rank, time in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
            attempt.record_error(rank, self.error(rank, time))
            os.utime(attempt.errors / f"{rank}.json", (50, 50))  # within one tick of the file system's clock
        first = attempt.first_error()
        assert first is not None
        assert first["rank"] == "b"

    def test_hosts_whose_clocks_differ(self, run: RunFolder) -> None:
        attempt = run.new_attempt()
        for rank, time, written in (("cause", 9.0, 50), ("felt it", 4.0, 51)):
            attempt.record_error(rank, self.error(rank, time))
            os.utime(attempt.errors / f"{rank}.json", (written, written))
        first = attempt.first_error()
        assert first is not None
        assert first["rank"] == "cause"

    def test_a_users_mistake_comes_before_its_consequences(self, run: RunFolder) -> None:
        attempt = run.new_attempt()
        attempt.record_error("a", self.error("a", 1.0))
        attempt.record_error("b", self.error("b", 3.0, "later"))
        attempt.record_error("c", self.error("c", 2.0, "mistake"))
        for rank, written in (("a", 51), ("b", 53), ("c", 52)):
            os.utime(attempt.errors / f"{rank}.json", (written, written))
        first = attempt.first_error()
        assert first is not None
        assert first["problems"][0]["what"] == "mistake"

    def test_half_written_errors_are_not_read(self, run: RunFolder) -> None:
        attempt = run.new_attempt()
        (attempt.errors / ".a.json.7.tmp").write_text("{")
        (attempt.errors / ".a.json").write_text("{")
        assert attempt.first_error() is None


class TestLock:
    CODE = """
import sys, time
from pathlib import Path
from scaleup.artifacts.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    time.sleep(60)
"""

    def test_another_process_is_refused_until_this_one_ends(self, run: RunFolder) -> None:
        command = [sys.executable, "-c", self.CODE, str(run.path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(ScaleupError, match="is running now"), run.locked():
                pass
            other.kill()
            other.wait()
            with run.locked():
                pass

    def test_its_file_heeds_the_umask(self, run: RunFolder) -> None:
        """Else anybody who reaches the folder could hold the lock of somebody else's run."""
        before = os.umask(0o077)
        try:
            with run.locked():
                (lock,) = run.path.parent.glob(".*.lock")
                assert lock.stat().st_mode & 0o077 == 0
        finally:
            os.umask(before)

    def test_each_node_has_a_lock(self, run: RunFolder) -> None:
        with run.locked(), run.locked(1), run.locked(2), pytest.raises(ScaleupError) as caught, run.locked(1):
            pass
        assert f"--node-rank 1 ({run.path}): is running now" in str(caught.value)

    @pytest.mark.parametrize("node_rank", [0, 1])
    def test_where_nothing_can_be_written_is_refused(self, tmp_path: Path, node_rank: int) -> None:
        """Also on a further node, which plans nothing."""
        (tmp_path / "runs").symlink_to("/nonexistent/runs")
        run = RunFolder(tmp_path / "runs/x")
        refused = r"runs_dir: .*x cannot be written: .*runs is a link to /nonexistent/runs, which is not there -> "
        with pytest.raises(ScaleupError, match=refused), run.locked(node_rank):
            pass

    def test_leaves_the_run_folder_alone(self, tmp_path: Path) -> None:
        run = RunFolder(tmp_path / "deep" / "x")
        with run.locked():
            assert not run.path.exists()
        assert run.state(config()) == "absent"


def test_keys_within_keys_and_within_every_place_of_a_list() -> None:
    free = {"a.b", "rewards.*.url"}
    assert all(is_among(key, free) for key in ("a.b", "a.b.c", "rewards.0.url", "rewards.12.url.x"))
    assert not any(is_among(key, free) for key in ("a", "a.bc", "rewards", "rewards.0", "rewards.x.url", "b.a.b"))


def test_differing_keys() -> None:
    one = {"a": 1, "b": {"c": 1, "d": {"e": 1}}, "f": [1]}
    assert differing_keys(one, one) == []
    other = {"a": 1, "b": {"c": 2, "d": {"e": 2}}, "f": [1, 2], "g": None, "h": 1}
    assert differing_keys(one, other) == ["b.c", "b.d.e", "f", "h"]
    assert differing_keys({"a": {"b": 1}}, {"a": 1}) == ["a"]


def test_file_sizes(tmp_path: Path) -> None:
    (tmp_path / "model/sub").mkdir(parents=True)
    (tmp_path / "model/sub/b").write_bytes(b"12")
    (tmp_path / "model/a").write_bytes(b"1")
    (tmp_path / "loss.png").write_bytes(b"")
    (tmp_path / "other").touch()
    (tmp_path / "model/z").symlink_to(tmp_path / "model/a")
    assert file_sizes(tmp_path, "model", "loss.png", "nothing") == {
        "loss.png": 0,
        "model/a": 1,
        "model/sub/b": 2,
        "model/z": 1,
    }
