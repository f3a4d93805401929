"""Bugs of the kind that no crash tells of, as patches of this package's own text; and what `scaleup verify` says of
runs that have one.

The runs are those that `scaleup verify` makes, but forked from a process that has imported everything (forked_runs.py):
two seconds each instead of ten. `python -m tests.planted FOLDER` reads {NAME: {"bug": ..., "config": ..., "rows": ...}}
from stdin and prints {NAME: {ROW: [VERDICT, DEVIATION, WHY]}}."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from scaleup.artifacts.files import cache_folder
from scaleup.config.load import load_mapping
from scaleup.config.stages.base import TrainingConfig
from scaleup.describe import plain
from scaleup.launcher.signals import StopSignals
from scaleup.studies.verify import results
from scaleup.studies.verify.equalities import TwinRun
from scaleup.studies.verify.runs import RunFailed, TwinRuns
from scaleup.studies.verify.twin import make_models, models_of, twin_of
from scaleup.studies.verify.verify import equalities_of, found
from tests.forked import be_ready_to_fork, in_children
from tests.forked_runs import REPOSITORY, Leg, go_on

TIMEOUT = 500.0


@dataclass(frozen=True)
class Bug:
    """One patch: `old`, which stands once in the file of a module, becomes `new`."""

    name: str
    module: str
    old: str
    new: str

    @property
    def file(self) -> Path:
        return REPOSITORY / f"{self.module.replace('.', '/')}.py"

    def patched(self) -> str:
        """Returns the text of the file with the bug. Raises AssertionError where the file has changed meanwhile."""
        text = self.file.read_text(encoding="utf-8")
        assert text.count(self.old) == 1, f"{self.module} has {self.old!r} {text.count(self.old)} times"
        return text.replace(self.old, self.new)


def plant(bug: Bug) -> None:
    """Puts a bug into this process, wherever a function of the module has been imported to: functions stay the objects
    that they are, and get the code of the patched ones."""
    module = import_module(bug.module)
    scope = dict(vars(module))
    exec(compile(bug.patched(), str(bug.file), "exec"), scope)
    _take_code(vars(module), scope)


def _take_code(into: Mapping[str, Any], of: Mapping[str, Any]) -> None:
    for name, new in of.items():
        old = into.get(name)
        new, old = (getattr(each, "fget", None) or getattr(each, "__wrapped__", each) for each in (new, old))
        if isinstance(new, types.FunctionType) and isinstance(old, types.FunctionType):
            if old.__code__.co_freevars == new.__code__.co_freevars:
                old.__code__ = new.__code__
        elif isinstance(new, type) and isinstance(old, type) and old is not new and new.__module__ == old.__module__:
            _take_code(vars(old), vars(new))


@dataclass
class ForkedRuns(TwinRuns):
    """Makes a twin's runs in forks of this process."""

    def _make(self, run: TwinRun) -> Path | RunFailed:
        before, folder = run.goes_on_from, self.place / run.name
        if before is not None:
            shutil.copytree(self.folder(before), folder)
        try:
            go_on(Leg(self._config(run)))
        except AssertionError as error:
            return RunFailed(f"run {run.name} ended: {error}")
        return folder


def told_here(run: Path, exported: Path | None) -> dict[str, dict[str, Any]]:
    """For studies.verify.results._told: from the function that it asks in a process of its own, which has no bug."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return plain.answers(config, str(run), exported and str(exported))


def own_tokens(place: Path) -> None:
    """Gives this process a cache whose tokens are its own, and all else everybody's: what a bug makes of rows is not to
    be found there by a run without it."""
    shared, own = cache_folder(), place / "cache" / "scaleup"
    own.mkdir(parents=True)
    for entry in shared.iterdir():
        if entry.name != "tokens":
            (own / entry.name).symlink_to(entry)
    os.environ["XDG_CACHE_HOME"] = str(own.parent)


def findings(bug: Mapping[str, str] | None, config: Mapping[str, Any], rows: Sequence[str]) -> dict[str, list[Any]]:
    """Returns what is found of the rows of a config's table, by a process with the bug."""
    results._told = told_here  # type: ignore[assignment]
    if bug is not None:
        own_tokens(Path.cwd() / bug["name"])
        plant(Bug(**bug))
    loaded = load_mapping(dict(config)).config
    assert isinstance(loaded, TrainingConfig)
    place = Path.cwd() / (bug["name"] if bug else "clean") / loaded.name
    models = {where: Path.cwd() / "models" / loaded.name / where for where in models_of(loaded)}
    runs = ForkedRuns(twin_of(loaded, models, place, is_on_cpu=True), place, StopSignals(), print)
    told = (found(each, runs) for each in equalities_of(loaded) if each.name in rows)
    return {each.name: [each.verdict, each.deviation, each.why] for each in told}


def verified(
    jobs: Mapping[str, tuple[Bug | None, Mapping[str, Any], Sequence[str]]], cwd: Path, timeout: float = TIMEOUT
) -> dict[str, Any]:
    """Returns what is found by each job: a bug, or none, a config, and the rows that are looked at."""
    configs = {config["name"]: config for _, config, _ in jobs.values()}
    for name, config in configs.items():
        loaded = load_mapping(dict(config)).config
        assert isinstance(loaded, TrainingConfig)
        with chdir(cwd):
            make_models(loaded, cwd / "models" / name)
    asked = {
        name: {"bug": bug and asdict(bug), "config": config, "rows": rows} for name, (bug, config, rows) in jobs.items()
    }
    command = [sys.executable, "-m", "tests.planted", str(cwd)]
    done = subprocess.run(
        command, cwd=REPOSITORY, input=json.dumps(asked), text=True, capture_output=True, timeout=timeout
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    cwd, asked = Path(sys.argv[1]), json.load(sys.stdin)
    be_ready_to_fork()
    os.chdir(cwd)
    print(json.dumps(dict(in_children({name: partial(findings, **job) for name, job in asked.items()}))))


if __name__ == "__main__":
    main()
