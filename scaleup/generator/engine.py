"""A run folder and the name of a group go in; this process answers the policy's requests until it is told to end.

    PYTHON -m scaleup.generator.engine runs/X generator

PYTHON is that of an environment with vLLM. What is imported here needs torch, NumPy and the standard library beside it:
that environment has another Transformers than ours, and need not have Accelerate or PEFT."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaleup.artifacts.bridge_file import BridgeFile
from scaleup.artifacts.files import read_json, write_json
from scaleup.artifacts.timeline import Timeline
from scaleup.distributed.heartbeat import Heartbeat
from scaleup.generator.serving import Drawer, join, serve
from scaleup.generator.wire import ConnectionLost


def main(drawer_of: Callable[[dict[str, Any]], Drawer] | None = None) -> None:
    """Run an engine of the group that the command line names. `drawer_of` takes its settings; vLLM by default."""
    arguments = _arguments()
    heartbeats = Path(arguments.local) / "heartbeats" if arguments.local else None
    heartbeat = Heartbeat(heartbeats / f"{arguments.group}-rank0.json" if heartbeats else None).start()
    run = Path(arguments.run)
    settings = read_json(run / "launch" / f"{arguments.group}.json")
    try:
        heartbeat.enter_phase("importing vLLM")
        drawer = (drawer_of or _by_vllm)(settings)
        heartbeat.enter_phase("waiting for the policy")
        channel = join(BridgeFile.read(Path(settings["bridge"])))
        serve(channel, drawer, heartbeat, Timeline(run / "timeline" / f"{arguments.group}.jsonl"))
    except ConnectionLost as error:
        print(f"generator: {error}; this process ends", flush=True)
        _end(1)
    except Exception as error:
        traceback.print_exc()
        if arguments.attempt:
            _record(run, arguments, error)
        _end(1)
    _end(0)


def _by_vllm(settings: dict[str, Any]) -> Drawer:
    from scaleup.generator.vllm_drawer import VLLMDrawer  # it imports vLLM, which takes seconds

    return VLLMDrawer(settings)


def _record(run: Path, arguments: argparse.Namespace, error: Exception) -> None:
    """Record an error where the launcher looks for those of workers."""
    rank = f"{arguments.group}-rank0"
    told = {"rank": rank, "time": time.time(), "problems": [], "error": f"{type(error).__name__}: {error}"}
    told["traceback"] = "".join(traceback.format_exception(error))
    write_json(run / "attempts" / str(arguments.attempt) / "errors" / f"{rank}.json", told)


def _end(code: int) -> None:
    """End at once: vLLM's own threads and processes need not be waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scaleup.generator.engine", description="The engine of a run's generator.")
    parser.add_argument("run", help="the run folder")
    parser.add_argument("group", help="the group of the plan, e.g. generator")
    parser.add_argument("--attempt", type=int, help="the attempt whose folder takes errors")
    parser.add_argument("--node", type=int, default=0, help="the node whose agent started it")
    parser.add_argument("--local", help="the node's own folder, which takes heartbeats")
    return parser.parse_args()


if __name__ == "__main__":
    main()
