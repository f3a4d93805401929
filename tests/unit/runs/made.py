"""Run folders as runs leave them, made by hand; and processes that have the lock of one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.files import write_json
from scaleup.artifacts.lineage import Code, Host, Lineage, Parent, manifest_hash
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import dump, load_mapping
from scaleup.launcher.ending import Ending
from scaleup.launcher.peers import Nodes
from scaleup.launcher.ranks import WorkerState
from tests.conftest import REPOSITORY
from tests.fake_facts import facts_of
from tests.unit.launcher.plans import group, plan_of

# Says that it has the lock; ends by itself when its input does, and on SIGTERM as it was told that the run would.
HOLDS = """
import signal, sys
from pathlib import Path
from scaleup.artifacts.run_folder import RunFolder
from tests.unit.runs.made import ended
class Stopped(Exception): ...
def stop(*_):
    raise Stopped
run = RunFolder(Path(sys.argv[1]))
signal.signal(signal.SIGTERM, stop)
with run.locked(int(sys.argv[2])):
    print("locked", flush=True)
    try:
        sys.stdin.read()
    except Stopped:
        ended(run, sys.argv[3], "why")
if sys.argv[4:]:
    sys.stdin.read()
sys.exit(75)
"""


def made(
    runs_dir: Path,
    name: str = "x",
    metrics: Sequence[Mapping[str, Any]] = (),
    parent: Path | None = None,
    drawn_by: Path | None = None,
    num_nodes: int = 1,
) -> RunFolder:
    """A run that was prepared, and logged these lines; its model lies in the folder of `parent`, its rows in that of
    `drawn_by`."""
    run = RunFolder(runs_dir / name)
    (run.path / "launch").mkdir(parents=True)
    raw = {"stage": "sft", "name": name, "model": {"path": "builtin:tiny-llama"}}
    loaded = load_mapping({**raw, "data": {"train": "rows.jsonl", "text": "{text}", "root": str(runs_dir.parent)}})
    assert loaded.config is not None
    run.config_file.write_text(dump(loaded.config), encoding="utf-8")
    plan = plan_of(run, group(num_nodes=num_nodes, num_processes=num_nodes))
    facts = facts_of(location=str(parent / "model")) if parent else facts_of()
    plan.model_copy(update={"model": facts}).save(run.plan_file)
    if drawn_by is not None:
        origin = Parent(run=str(drawn_by), manifest=manifest_hash(drawn_by) or "")
        known: dict[str, Any] = {"config": "", "data": {}, "packages": {}, "code": Code(version="1")}
        lineage = Lineage(**known, machine=Host(name="vm", num_cores=1), parents={"data.train.0.path": origin})
        write_json(run.lineage_file, lineage.model_dump(mode="json"))
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in metrics), encoding="utf-8")
    return run


def ended(run: RunFolder, kind: Any, what: str = "", error: dict[str, Any] | None = None) -> RunFolder:
    """Has had an attempt that ended so."""
    nodes = Nodes(run, 0, 1)
    nodes.enter(run.new_attempt())
    nodes.close(Ending(kind, what, error=error), 0)
    if kind == "finished":
        run.finish("sft", run.path.name, {"train_loss": 2.0, "best_eval_loss": 1.5, "best_step": 2}, 4)
    return run


def elsewhere(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Goes on, on host `far`, whose agent has just posted a notice. Returns its file."""
    attempt = run.new_attempt()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "far")
        nodes = Nodes(run, 0, 1)
    nodes.enter(attempt)
    nodes.show({"policy-rank0": WorkerState("policy-rank0", "far", 9, 1, "training", 3, 3, (1, 0))}, False)
    return attempt.node_file(0)


@contextmanager
def held(
    run: RunFolder, node_rank: int = 0, ends: str = "stopped", lives_on: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock of a run, until the block ends."""
    command = [sys.executable, "-c", HOLDS, str(run.path), str(node_rank), ends, *["lives on"] * lives_on]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process


def heartbeat(folder: Path, name: str, **changes: Any) -> None:
    """What a worker says of itself in its node's own folder."""
    told = {"beat": 1, "pid": 7, "phase": "reading rows", "step": 3, "steps": 3, "position": [1, 0]}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {**told, "num_steps": 4, "step_seconds": 10.0, **changes})
