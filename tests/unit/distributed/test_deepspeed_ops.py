"""DeepSpeed's ops are built once, by one process, in our folder; what stops a build is a named error, never a hang.

DeepSpeed is not needed here: `Cpp` hands a tiny C++ file to the torch function that DeepSpeed's builders call."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaleup.distributed import deepspeed_ops
from scaleup.distributed.deepspeed_ops import build, ensure_built, ops_folder
from scaleup.errors import ScaleupError

ROOT = Path(__file__).parents[3]
needs_compiler = pytest.mark.skipif(not (shutil.which("c++") and shutil.which("ninja")), reason="needs c++ and ninja")

SLOW_BUILDER = """
import sys, time
from pathlib import Path
from scaleup.distributed.deepspeed_ops import build

class Slow:
    name = "slow"
    def load(self, verbose=False):
        (folder / "slow" / "lock").touch(exist_ok=False)
        if not (folder / "slow" / "done").exists():
            time.sleep(float(sys.argv[2]))
            (folder / "slow" / "done").touch()
        (folder / "slow" / "lock").unlink()

folder = Path(sys.argv[1])
(folder / "slow").mkdir(exist_ok=True)
build(folder, [Slow()], lambda line: print(line, flush=True))
"""


class Fake:
    name = "op"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.loads = 0

    def load(self, verbose: bool = False) -> None:
        self.loads += 1
        if self.error:
            raise self.error


class Cpp:
    name = "op"

    def __init__(self, source: Path) -> None:
        self.source = source

    def load(self, verbose: bool = False) -> None:
        from torch.utils.cpp_extension import load

        folder = self.source.parent / "op"
        folder.mkdir(exist_ok=True)
        load("op", [str(self.source)], build_directory=str(folder), verbose=verbose, is_python_module=False)


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    for name in ("PATH", "TORCH_EXTENSIONS_DIR"):  # ensure_built sets them
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the metadata of a torch and a deepspeed, found before what is installed."""
    site = tmp_path / "site"
    for name, version in (("torch", "2.0"), ("deepspeed", "0.9")):
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(site))
    return site


def start_slow(folder: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW_BUILDER, str(folder), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_says_so_before_the_first_build_only(tmp_path: Path, messages: list[str]) -> None:
    op = Fake()
    build(tmp_path, [op], messages.append)
    assert len(messages) == 1 and "op" in messages[0] and "only once" in messages[0]
    build(tmp_path, [op], messages.append)
    assert len(messages) == 1
    assert op.loads == 2  # loaded under the lock in every process, so that DeepSpeed never loads it without


def test_a_failed_build_is_not_taken_for_a_built_one(tmp_path: Path, messages: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(ScaleupError, match="cannot be built"):
            build(tmp_path, [Fake(RuntimeError("no"))], messages.append)
    build(tmp_path, [Fake()], messages.append)
    assert len(messages) == 3


@needs_compiler
def test_torch_builds_and_the_compilers_last_lines_are_in_the_error(tmp_path: Path, messages: list[str]) -> None:
    source = tmp_path / "op.cpp"
    source.write_text("#error this is wrong\n")
    with pytest.raises(ScaleupError) as caught:
        build(tmp_path, [Cpp(source)], messages.append)
    (problem,) = caught.value.problems
    assert "op" in problem.where and "#error this is wrong" in problem.what and problem.remedy
    assert len(problem.what.splitlines()) <= 13

    source.write_text("int answer() { return 42; }\n")
    build(tmp_path, [Cpp(source)], messages.append)
    assert list((tmp_path / "op").glob("op*.so"))
    assert not (tmp_path / "op" / "lock").exists()


def test_processes_at_once_build_once(tmp_path: Path) -> None:
    processes = [start_slow(tmp_path, 0.5) for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    lines = "".join(out for out, _ in outputs)
    assert lines.count("Compiling") == 1


def test_a_killed_build_is_an_error_for_those_who_wait_and_for_later_ones(tmp_path: Path, messages: list[str]) -> None:
    first = start_slow(tmp_path, 600)
    assert first.stdout and "Compiling" in first.stdout.readline()
    second = start_slow(tmp_path, 600)
    assert second.stdout and "Waiting" in second.stdout.readline()
    lock = tmp_path / "slow" / "lock"
    while not lock.exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1 and f"{lock}: left by a build that was killed" in errors

    op = Fake()
    op.name = "slow"
    with pytest.raises(ScaleupError) as caught:
        build(tmp_path, [op], messages.append)
    assert caught.value.problems[0].where == str(lock)
    assert caught.value.problems[0].remedy == "delete it"
    assert op.loads == 0

    lock.unlink()
    build(tmp_path, [op], messages.append)
    assert op.loads == 1


def test_no_compiler(tmp_path: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    op = Fake()
    build(tmp_path, [op], messages.append)
    monkeypatch.setenv("PATH", str(tmp_path))
    build(tmp_path, [op], messages.append)  # built before: none is needed

    with pytest.raises(ScaleupError, match=r"compiler 'c\+\+' was not found.*CXX="):
        build(tmp_path / "fresh", [op], messages.append)
    monkeypatch.setenv("CXX", "nothing++ -O3")
    with pytest.raises(ScaleupError, match="nothing"):
        build(tmp_path / "fresh", [op], messages.append)
    monkeypatch.setenv("CXX", f"{sys.executable} -O3")
    build(tmp_path / "fresh", [op], messages.append)


def test_a_cache_that_cannot_be_written(tmp_path: Path, messages: list[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ScaleupError, match="XDG_CACHE_HOME"):
        build(tmp_path / "file" / "ops", [Fake()], messages.append)


def test_the_environment_is_set_and_ninja_is_needed(
    tmp_path: Path, packages: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = tmp_path / "venv" / "bin"
    bin_folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(bin_folder / "python"))
    monkeypatch.setenv("PATH", f"/nowhere:{bin_folder}")
    with pytest.raises(ScaleupError, match=r"ninja: not found.*pip install"):
        ensure_built([], messages.append)
    assert os.environ["PATH"] == f"{bin_folder}:/nowhere"
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(ops_folder())


def test_the_folder_is_ours_and_changes_with_what_a_build_depends_on(
    tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ops_folder()
    assert first == ops_folder()
    assert first.parent == tmp_path / "scaleup" / "deepspeed-ops"
    assert first.name.startswith("0.9-")

    folders = {first}
    with monkeypatch.context() as changed:
        changed.setenv("CXX", "clang++")
        folders.add(ops_folder())
    with monkeypatch.context() as changed:
        changed.setattr(deepspeed_ops, "_cpu", lambda: "flags: another machine")
        folders.add(ops_folder())
    (packages / "torch-2.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.1\n")
    folders.add(ops_folder())
    elsewhere = packages.rename(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(str(elsewhere))
    folders.add(ops_folder())
    assert len(folders) == 5


def test_no_deepspeed(
    tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(packages / "deepspeed-0.9.dist-info")
    monkeypatch.setattr(sys, "path", [str(packages)])
    assert deepspeed_ops.main() == 2
    assert "pip install 'scaleup[deepspeed]'" in capsys.readouterr().err
