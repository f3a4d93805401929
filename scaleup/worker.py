"""A run folder and the name of a process group go in; this process does its part of the stage. Every launched process
runs it: run folder -> Runtime -> Job -> stage.

    accelerate launch --config_file runs/X/launch/policy.yaml -m scaleup.worker runs/X policy

With `--attempt NUMBER` and `--local FOLDER` (which the launcher adds) output goes to the attempt's logs, heartbeats and
progress to the node's own folder, and errors are recorded for the launcher to show; started by hand, both go to the
terminal. Either way the run continues from its newest checkpoint."""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import write_json
from scaleup.artifacts.local_folder import LocalFolder
from scaleup.artifacts.run_folder import Attempt, RunFolder
from scaleup.children import visible_devices
from scaleup.distributed.heartbeat import Heartbeat
from scaleup.distributed.signals import STOPPED, StopFlag, stop_with_parent
from scaleup.errors import ScaleupError
from scaleup.plan.types import GroupPlan, Plan
from scaleup.streams import steady_streams

NO_MEMORY = (
    "MemoryError: this host gives the process no more memory (`ulimit -v`, a container's limit, other processes)"
)

SAVE_SECONDS = 30.0
"""Bounds how long a process that has failed goes on for a checkpoint that is being written in the background."""


def main() -> None:
    with steady_streams():
        _main(_arguments())


def _main(arguments: argparse.Namespace) -> None:
    run = RunFolder(Path(arguments.run).absolute())
    attempt = run.attempt(arguments.attempt) if arguments.attempt else None
    local = LocalFolder(Path(arguments.local)) if arguments.local else None
    rank_name = f"{arguments.group}-rank{os.environ.get('RANK', '0')}"
    stop, heartbeat = StopFlag(ends_process=attempt is not None).install(), Heartbeat()
    try:
        if attempt:
            stop_with_parent()
            _redirect_output(attempt.logs / f"{rank_name}.log")
            heartbeat = Heartbeat(local.heartbeats / f"{rank_name}.json" if local else None).start()
            _record(attempt, rank_name, arguments.node)
        _work(run, arguments.group, local, stop, heartbeat)
    except (Exception, SystemExit) as error:  # a library may call sys.exit
        if isinstance(error, SystemExit) and error.code in (None, 0, STOPPED):
            raise
        if stop.is_ending:
            os._exit(STOPPED)
        _let_saves_end()
        code = 2 if isinstance(error, ScaleupError) else 1
        with suppress(OSError):  # a full disk takes no error either
            _report(error, attempt, rank_name)
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # not sys.exit: a process group whose peers are gone may never let the interpreter end


def _work(run: RunFolder, group: str, local: LocalFolder | None, stop: StopFlag, heartbeat: Heartbeat) -> None:
    from scaleup.distributed.runtime import Runtime  # after the signal handlers: torch takes seconds to import
    from scaleup.models.load import quiet_libraries
    from scaleup.train.fit import Stopped
    from scaleup.train.job import Job

    quiet_libraries()
    config, plan = run.config, Plan.read(run.plan_file)
    _leave_devices_to_others(plan.group(group))
    if local and plan.group(group).serves:
        stop.leave_to_the_agent()
    runtime = Runtime.start(
        plan.group(group),
        timeout_seconds=plan.group(group).timeout_seconds,
        run_folder=run.path,
        report_to=getattr(config, "report_to", []),
        progress_file=local.progress_file(group) if local else None,
        stop=stop,
        heartbeat=heartbeat,
    )
    stage: Any = importlib.import_module(f"scaleup.stages.{config.stage}")
    try:
        stage.run(Job(config, plan, runtime, run))
    except Stopped as stopped:
        print(f"{stopped}; continue with --resume")
    runtime.accelerator.end_training()


def _let_saves_end() -> None:
    """Let a checkpoint be written to its end that the training did not wait for."""
    with suppress(ImportError):  # that may be what has failed
        from scaleup.train.background import let_saves_end

        let_saves_end(SAVE_SECONDS)


def _leave_devices_to_others(group: GroupPlan) -> None:
    """Let this process see its group's GPUs alone: the first ones of a node belong to the groups before it."""
    if not group.first_device:
        return
    count = group.num_processes // group.num_nodes
    os.environ["CUDA_VISIBLE_DEVICES"] = visible_devices(group.first_device, count)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scaleup.worker", description="One process of one group of a run.")
    parser.add_argument("run", help="the run folder")
    parser.add_argument("group", help="the group of the plan that this process belongs to, e.g. policy")
    parser.add_argument("--attempt", type=int, help="the attempt whose folder takes logs and errors")
    parser.add_argument("--node", type=int, default=0, help="the node whose agent started it")
    parser.add_argument("--local", help="the node's own folder, which takes heartbeats and progress")
    return parser.parse_args()


def _redirect_output(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _record(attempt: Attempt, rank_name: str, node_rank: int) -> None:
    """Records where this worker is, for people. The node agent knows it by its heartbeat, and signals it itself: the
    launchers between them would kill it after 30 seconds."""
    place = {"pid": os.getpid(), "host": socket.gethostname(), "node": node_rank}
    write_json(attempt.workers / f"{rank_name}.json", place, is_durable=False)


def _report(error: BaseException, attempt: Attempt | None, rank_name: str) -> None:
    is_users, is_of_memory = isinstance(error, ScaleupError), isinstance(error, MemoryError)
    trace = "" if is_users else "".join(traceback.format_exception(error))
    print(f"error: {error}" if is_users else trace, file=sys.stderr, flush=True)
    if attempt:
        problems = [vars(problem) for problem in error.problems] if isinstance(error, ScaleupError) else []
        attempt.record_error(
            rank_name,
            {
                "rank": rank_name,
                "time": time.time(),
                "problems": problems,
                "error": NO_MEMORY if is_of_memory else str(error) or repr(error),
                "traceback": "" if is_of_memory else trace,  # where memory ran out says nothing of why
            },
        )


if __name__ == "__main__":
    main()
