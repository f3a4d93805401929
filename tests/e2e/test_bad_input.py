"""Every mistake a user can make in a config, its data or the folder around it: refused by name, all at once, with exit
code 2, without a traceback, and with nothing written, launched or loaded.

Each case is a good tiny run with something spoilt. It names one line of output for each mistake, and there may be no
line beside these. The whole of the output is in tests/goldens/mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaleup import cli
from scaleup.plan import machine
from tests.cli import differing, scaleup
from tests.describer import COMMAND, Describer
from tests.e2e.mistakes.case import FACTS, GOOD, GOOD_ROW, Case, M, bad
from tests.golden import Golden

pytestmark = pytest.mark.covers("refusals")
MISTAKES = (f"tests.e2e.mistakes.{file.stem}" for file in sorted(Path(__file__).with_name("mistakes").glob("*.py")))
GROUPS: dict[str, list[Case]] = {
    group: cases for name in MISTAKES for group, cases in getattr(import_module(name), "CASES", {}).items()
}
"""Those of every file of mistakes: a new stage brings its own."""
CASES = {f"{group}: {case.name}": case for group, cases in GROUPS.items() for case in cases}
AS_PROCESS = [
    "values: wrong types everywhere",
    "data: everything at once",
    "command: evaluate an unfinished run",
    "model: a task that is not the model's",  # the only one that starts the process which looks at models
]


def test_there_are_enough_cases() -> None:
    assert len(CASES) == sum(map(len, GROUPS.values())), "two cases of one name"
    assert len(CASES) >= 50
    assert sum(len(case.lines) >= 3 for case in CASES.values()) >= 10


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache for all cases, away from the user's and from the folders that must stay as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.mark.parametrize("name", CASES)
def test_is_refused(
    name: str,
    tmp_path: Path,
    golden: Golden,
    describer: Describer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    case = CASES[name]
    folder = working_folder(case, tmp_path)
    before = listing(folder)
    started: list[list[str]] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["scaleup", *case.command, *case.overrides])
    monkeypatch.setattr(subprocess, "Popen", recording(started))
    monkeypatch.setattr(subprocess, "run", recording_questions(started, describer))
    if case.memory is not None:
        monkeypatch.setattr(machine, "_memory", lambda: case.memory)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    stdout, stderr = capfd.readouterr()
    assert (ended.value.code, stdout) == (2, "")
    check_lines(case, stderr)
    check_golden(golden, name, stderr, folder)
    assert listing(folder) == before, "something was written"
    if case.asks:
        assert all(command[1:] == FACTS for command in started), "something was launched"
    else:
        assert started == [], "something was launched before the config was found bad"


@pytest.mark.parametrize("name", AS_PROCESS)
def test_is_refused_as_a_process(name: str, tmp_path: Path, golden: Golden) -> None:
    case = CASES[name]
    folder = working_folder(case, tmp_path)
    before = listing(folder)
    result = scaleup(*case.command, *case.overrides, cwd=folder)
    assert (result.code, result.stdout) == (2, "")
    check_lines(case, result.stderr)
    check_golden(golden, name, result.stderr, folder)
    assert listing(folder) == before


@pytest.mark.parametrize("group", GROUPS)
def test_no_golden_is_of_another_case(group: str, golden: Golden) -> None:
    golden.check_sections(golden_of(group), [case.name for case in GROUPS[group]])


def test_a_crash_is_seen(describer: Describer, capfd: pytest.CaptureFixture[str]) -> None:
    """Where no process of its own is started to look at models, either."""
    answer = describer.run(COMMAND, input="no JSON", stdout=subprocess.PIPE, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "Traceback" in capfd.readouterr().err


def test_the_good_config_is_good(tmp_path: Path) -> None:
    """Otherwise the cases would prove little."""
    folder = working_folder(bad("good"), tmp_path)
    before = listing(folder)
    result = scaleup("plan", "config.yaml", "--json", cwd=folder)
    assert (result.code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["batch"]["num_train_rows"] == 2
    assert listing(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path: Path) -> None:
    folder = working_folder(bad("good", changes={"data.train": "./secret", **M}), tmp_path)
    (folder / "secret").mkdir(mode=0)
    (folder / "held.jsonl").chmod(0)
    (folder / "runs").mkdir(mode=0o500)
    result = scaleup("run", "config.yaml", cwd=folder)
    (folder / "secret").chmod(0o700)
    assert result.code == 2
    case = bad("", "secret' cannot be read", "held.jsonl: cannot be read", "runs cannot be written", "no model folder")
    check_lines(case, result.stderr)


def working_folder(case: Case, tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "rows.jsonl").write_text(2 * (GOOD_ROW + "\n"))
    (folder / "held.jsonl").write_text(GOOD_ROW + "\n")
    (folder / "more.csv").write_text("text,label\nfine,positive\n")
    text = case.text if case.text is not None else yaml.safe_dump(without_nulls(differing(GOOD, case.changes)))
    (folder / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        case.prepare(folder)
    return folder


def without_nulls(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: without_nulls(value) for key, value in config.items() if value is not None}
    return config


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything in a folder, down to when it was last written."""
    stats = {str(path.relative_to(folder)): path.lstat() for path in [folder, *folder.rglob("*")]}
    return {name: (stat.st_mtime_ns, stat.st_size, stat.st_mode) for name, stat in stats.items()}


def recording(started: list[list[str]]) -> type[subprocess.Popen[Any]]:
    class Recording(subprocess.Popen[Any]):
        def __init__(self, command: Any, *rest: Any, **options: Any) -> None:
            started.append(command)
            super().__init__(command, *rest, **options)

    return Recording


def recording_questions(started: list[list[str]], describer: Describer) -> Callable[..., Any]:
    """For subprocess.run: who answers has been started before."""

    def run(command: list[str], **options: Any) -> Any:
        if command[1:] == FACTS:
            started.append(command)
        return describer.run(command, **options)

    return run


def check_lines(case: Case, stderr: str) -> None:
    """Each expected line is there, and no other; the process that looks at models may show how far it is."""
    assert "Traceback" not in stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error: ") or not case.asks]
    for expected in case.lines:
        found = [line for line in lines if expected in line and line.startswith("error: ")]
        assert found, f"no line with {expected!r} is left of:\n{stderr}"
        lines.remove(found[0])
    assert lines == [], "more than was expected"


def golden_of(group: str) -> str:
    return f"mistakes/{group.replace(' ', '-')}.txt"


def check_golden(golden: Golden, name: str, stderr: str, folder: Path) -> None:
    """Every byte of what is printed, but for what libraries say while they look at a model."""
    group, _, case = name.partition(": ")
    lines = [line for line in stderr.splitlines(True) if line.startswith("error: ") or not CASES[name].asks]
    golden.check_section(golden_of(group), case, "".join(lines), {"FOLDER": folder})
