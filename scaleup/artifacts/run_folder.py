"""This module lays out a run folder, and tells what state one is in. Whoever needs a path inside a run asks here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from filelock import FileLock, Timeout

import scaleup
from scaleup.artifacts.files import folder_problem, read_json, write_json
from scaleup.artifacts.lineage import Lineage
from scaleup.artifacts.manifest import Manifest, file_sizes, write_manifest
from scaleup.config.load import BAD_YAML, parse
from scaleup.config.run import RunConfig
from scaleup.config.stages import STAGES
from scaleup.errors import Problem, ScaleupError

MAY_CHANGE_ON_RESUME = frozenset(
    {
        "name",
        "runs_dir",
        "cluster",
        "report_to",
        "train.stop_at_step",
        "train.save_steps",
        "train.save_minutes",
        "train.save_total_limit",
        "train.max_shard_size",
        "train.logging_steps",
        "parallel.timeout_seconds",
        "parallel.heartbeat_timeout_seconds",
        "parallel.progress_timeout_seconds",
        "parallel.max_restarts",
        "parallel.main_address",
        "parallel.main_port",
        "parallel.interface",
        "evaluation",
        "generation",
    }
)
"""These keys do not move the trajectory: a run goes on wherever its folder lies now, and whatever it is called. Any
other difference makes it another run."""
RESULTS = ("model", "metrics.jsonl", "metrics.json", "predictions.jsonl", "loss.png")
"""These files and folders a run leaves for others: the manifest names its files and their sizes."""


def unwritable(path: Path, why: str) -> Problem:
    """Returns the one refusal of a place where a run cannot write."""
    return Problem("runs_dir", f"{path} cannot be written: {why}", "make room there, or name another folder")


@dataclass(frozen=True)
class RunFolder:
    """Stands for `<runs_dir>/<name>`. The run is finished when `manifest.json` is there, which is written last."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def data_file(self) -> Path:
        """Return the file that tells which rows the run began with."""
        return self.path / "data.json"

    @property
    def lineage_file(self) -> Path:
        return self.path / "lineage.json"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def resumable_file(self) -> Path:
        """Return the file that is written when a signal stopped the run after a checkpoint; gone once the run goes
        on."""
        return self.path / "resumable.json"

    def bridge_file(self, group: str) -> Path:
        """Return the file by which the policy and a group that serves it find each other, with their secret: for the
        user's eyes only."""
        return self.path / ("bridge.json" if group == "reward" else f"bridge-{group}.json")

    def lost_file(self, group: str) -> Path:
        """Return the file that a policy writes when it gets no answers from such a group: it may be alive, and hang."""
        return self.path / f"{group}-lost.json"

    @property
    def timelines(self) -> Path:
        """Return the folder of what each group did when, a file each."""
        return self.path / "timeline"

    def launch_file(self, group: str) -> Path:
        return self.path / "launch" / f"{group}.yaml"

    def engine_file(self, group: str) -> Path:
        """Return the file of what an engine that draws responses is started with."""
        return self.path / "launch" / f"{group}.json"

    @property
    def engine_path(self) -> Path:
        """Return the folder from which an engine imports this package: there is nothing else in it, as it has another
        environment."""
        return self.path / "launch" / "path"

    def lock_file(self, node_rank: int = 0) -> Path:
        """Return the file, beside the folder, on which whoever runs it (or this node's part) has the kernel's lock."""
        suffix = f".node{node_rank}" if node_rank else ""
        return self.path.parent / f".{self.path.name}{suffix}.lock"

    @contextmanager
    def locked(self, node_rank: int = 0) -> Iterator[None]:
        """Keep everybody else from starting this run (or this node's part of it); the kernel lets go when this process
        ends, however it ends.

        Raises ScaleupError when somebody else has it."""
        # not a soft lock, filelock's way out where there is no flock: it would outlive a holder that is killed
        lock = FileLock(self.lock_file(node_rank), fallback_to_soft=False)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout:
            where = f"--node-rank {node_rank}" if node_rank else "runs_dir/name"
            raise ScaleupError.of(
                f"{where} ({self.path})", "is running now", "wait for it, or choose another name"
            ) from None
        except OSError as error:
            why = folder_problem(self.path.parent) or error.strerror or str(error)
            raise ScaleupError(unwritable(self.path, why)) from error
        try:
            yield
        finally:
            lock.release()

    def new_attempt(self) -> Attempt:
        """Make the folder of one more start of the run, which all nodes share. Only the first node makes one."""
        newest = self.newest_attempt()
        attempt = self.attempt(newest.number + 1 if newest else 1)
        for folder in (attempt.logs, attempt.errors, attempt.workers, attempt.nodes):
            folder.mkdir(parents=True)
        return attempt

    def newest_attempt(self) -> Attempt | None:
        names = [folder.name for folder in (self.path / "attempts").glob("*")]
        last = max((int(name) for name in names if name.isdecimal()), default=None)
        return None if last is None else self.attempt(last)

    def attempt(self, number: int) -> Attempt:
        return Attempt(self.path / "attempts" / str(number))

    @cached_property
    def config(self) -> RunConfig:
        """Return the resolved config that the run was started with. Workers read this and nothing else."""
        try:
            raw = parse(self.config_file.read_text(encoding="utf-8"))
            return STAGES[raw["stage"]].model_validate(raw)
        except (OSError, KeyError, TypeError, *BAD_YAML) as error:
            what = f"cannot be read: {' '.join(str(error).split())[:300]}"
            raise ScaleupError.of(str(self.config_file), what, "name a run folder that scaleup wrote") from error

    def finish(self, stage: str, name: str, metrics: dict[str, Any], num_steps: int | None) -> None:
        """Write the manifest: from here on the run is finished. Rank 0 calls it, after everything else."""
        self.resumable_file.unlink(missing_ok=True)
        manifest = Manifest(
            stage=stage,
            name=name,
            scaleup_version=scaleup.__version__,
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
            num_steps=num_steps,
            metrics=metrics,
            files=file_sizes(self.path, *RESULTS),
            lineage=self.lineage(),
        )
        write_manifest(self.manifest_file, manifest)

    def manifest(self) -> Manifest | None:
        return Manifest.model_validate(read_json(self.manifest_file)) if self.manifest_file.is_file() else None

    def lineage(self) -> Lineage | None:
        """Return what the run was made from, or was last started from; None of a run of an earlier version."""
        try:
            if (manifest := self.manifest()) is not None:
                return manifest.lineage
            return Lineage.model_validate(read_json(self.lineage_file))
        except (OSError, ValueError):
            return None

    def state(self, config: RunConfig, may_change: Set[str] = frozenset()) -> str:
        """Return `absent`, `finished` or `unfinished` for a folder that holds this very run, the keys in `may_change`
        aside.

        Raises ScaleupError when it holds another run, or something that is no run."""
        where = f"runs_dir/name ({self.path})"
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return "absent"
        if not self.config_file.is_file():
            raise ScaleupError.of(where, "exists and is no run folder", "choose another name")
        try:
            moved = self.moved_keys(config, may_change)
        except ScaleupError:
            raise ScaleupError.of(where, "holds a run with an unreadable config.yaml", "choose another name") from None
        if moved:
            shown = ", ".join(moved[:5]) + (f" and {len(moved) - 5} more" if len(moved) > 5 else "")
            raise ScaleupError.of(where, f"holds another run, which differs in {shown}", "choose another name")
        return "finished" if self.manifest_file.is_file() else "unfinished"

    def moved_keys(self, config: RunConfig, may_change: Set[str] = frozenset()) -> list[str]:
        """Return the keys in which a config is that of another run than the folder's, those in `may_change` aside."""
        different = differing_keys(self.config.model_dump(mode="json"), config.model_dump(mode="json"))
        free = MAY_CHANGE_ON_RESUME | config.free_on_resume | may_change
        return [key for key in different if not is_among(key, free)]


@dataclass(frozen=True)
class Attempt:
    """Stands for one start of a run: its logs, where each worker was, the error each rank ended with, and what the
    nodes' agents tell one another. What a node's workers tell their agent is in its `LocalFolder`."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def errors(self) -> Path:
        return self.path / "errors"

    @property
    def workers(self) -> Path:
        """Return the folder of records, for people alone, of where each worker was: its host, node and process id."""
        return self.path / "workers"

    @property
    def nodes(self) -> Path:
        """Return the notice board of the nodes' agents."""
        return self.path / "nodes"

    def launcher_log(self, group: str, node_rank: int, restart: int = 0) -> Path:
        """Return the log of one start of a group's launcher; each start has its own."""
        again = f"-restart{restart}" if restart else ""
        return self.logs / f"{group}-node{node_rank}{again}.log"

    def node_file(self, node_rank: int) -> Path:
        return self.nodes / f"{node_rank}.json"

    def record_error(self, rank_name: str, error: dict[str, Any]) -> None:
        write_json(self.errors / f"{rank_name}.json", error)

    def forget_errors(self, group: str) -> None:
        """Hide the errors of a group's workers, which are not how the run ends. The files stay, out of sight."""
        for file in self.errors.glob(f"{group}-rank*.json"):
            file.replace(file.with_name(f".{file.name}"))

    def has_mistake(self, group: str) -> bool:
        """Return whether a worker of the group ended with a mistake of the user's, which would come again."""
        return any(read_json(file)["problems"] for file in self.errors.glob(f"{group}-rank*.json"))

    def first_error(self) -> dict[str, Any] | None:
        """Return the earliest error that any rank recorded; a user's mistake before those that it caused on other
        ranks.

        By the file system's clock, which the hosts share; within a tick of it, by that of the ranks."""
        errors = [(read_json(file), file.stat().st_mtime_ns) for file in self.errors.glob("[!.]*.json")]
        earliest = min(errors, key=lambda each: (not each[0]["problems"], each[1], each[0]["time"]), default=None)
        return earliest and earliest[0]


def is_among(key: str, keys: Iterable[str]) -> bool:
    """Return whether a dotted key is one of `keys`, or lies within one of them. In these `*` stands for any place of a
    list."""
    parts = key.split(".")
    patterns = [each.split(".") for each in keys]
    return any(len(parts) >= len(each) and all(map(_fits, parts, each)) for each in patterns)


def _fits(part: str, pattern: str) -> bool:
    return part == pattern or (pattern == "*" and part.isdecimal())


def differing_keys(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys in which two nested mappings differ; of lists of mappings that are equally long, with the
    place."""
    different: list[str] = []
    for key in sorted(one.keys() | other.keys()):
        left, right = one.get(key), other.get(key)
        if _are_sections(left) and _are_sections(right) and len(left) == len(right):
            left, right = (dict(zip(map(str, range(len(side))), side, strict=True)) for side in (left, right))
        if isinstance(left, dict) and isinstance(right, dict):
            different += differing_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            different.append(f"{prefix}{key}")
    return different


def _are_sections(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def finished_run(path: Path) -> RunFolder:
    """Return the finished run at a path. Raises ScaleupError if there is none."""
    run = RunFolder(path.absolute())
    if not run.config_file.is_file():
        raise ScaleupError(Problem(str(path), "is no run folder", "name the folder of a run, e.g. runs/reviews"))
    if not run.manifest_file.is_file():
        raise ScaleupError(Problem(str(path), "is a run that has not finished", "continue it with --resume"))
    return run
