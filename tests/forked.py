"""Ranks of a prepared run, forked from a process that has imported everything already: a second each instead of ten.

For tests and benchmarks that need many small worlds. What starts real runs is the launcher."""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaleup.artifacts.run_folder import RunFolder
from scaleup.distributed.signals import stop_with_parent
from scaleup.plan.types import GroupPlan, Plan


def fork(run: RunFolder, plan: Plan, rank_main: Callable[[RunFolder, Path], None]) -> list[dict[str, Any]]:
    """Start the ranks of a prepared run, wait for them, and give what each wrote into its file.

    Raises RuntimeError with every rank's log if one fails."""
    group, port, children = plan.group("policy"), free_port(), []
    outs = [run.path / f"rank{rank}.json" for rank in range(group.num_processes)]
    for rank, out in enumerate(outs):
        if child := os.fork():
            children.append(child)
            continue
        log = os.open(out.with_suffix(".log"), os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        stop_with_parent()
        try:
            os.environ.update(environment(group, rank, port))
            rank_main(run, out)
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    codes = [os.waitpid(child, 0)[1] for child in children]
    if any(codes):
        raise RuntimeError("\n".join(out.with_suffix(".log").read_text() for out in outs))
    return [json.loads(out.read_text()) for out in outs]


def environment(group: GroupPlan, rank: int, port: int) -> dict[str, str]:
    """What `accelerate launch` would say."""
    kinds = {"DEEPSPEED": {"ACCELERATE_USE_DEEPSPEED": "true"}, "FSDP": {"ACCELERATE_USE_FSDP": "true"}}
    names = {"ACCELERATE_MIXED_PRECISION": group.mixed_precision, "FSDP_VERSION": "2"}
    names |= kinds.get(group.distributed_type, {})
    if group.distributed_type == "NO":
        return names
    world = str(group.num_processes)
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return names | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
