"""Ranks of a prepared run, forked from a process that has imported everything already: a second each instead of ten.

For tests and benchmarks that need many small worlds. What starts real runs is the launcher."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from scaleup import stages
from scaleup.artifacts.bridge_file import free_port
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import load_mapping
from scaleup.distributed.signals import stop_with_parent
from scaleup.launcher.prepare import prepare_run
from scaleup.plan.facts import ModelFacts
from scaleup.plan.resolve import resolve
from scaleup.plan.types import GroupPlan, Plan

LIBRARIES = (
    *(f"scaleup.stages.{module.name}" for module in iter_modules(stages.__path__)),
    "trl.kernels",
    "peft",
    "deepspeed.runtime.engine",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "matplotlib.pyplot",
    "torch.utils.cpp_extension",
    "torch.utils.tensorboard",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("gpt2", "llama", "t5")),
)


def be_ready_to_fork() -> None:
    """Do once what every rank would do for itself, and nothing that starts a thread, which a child would miss."""
    import torch
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from scaleup.distributed.deepspeed_ops import uncompiled
    from scaleup.models.quantized import import_bitsandbytes
    from scaleup.plan import describe

    import_bitsandbytes()
    with uncompiled():
        for name in LIBRARIES:
            importlib.import_module(name)
    get_checkpoint_conversion_mapping("llama")  # and of all other models
    describe._ask = described_here  # type: ignore[assignment]
    torch.set_num_threads(1)
    gc.freeze()  # a child's collections need not look at all this


def prepared(config: Mapping[str, Any], resume: bool = False) -> tuple[RunFolder, Plan]:
    """Plan a run, and write all that its ranks read."""
    known, plan = resolve(load_mapping(dict(config)), resume=resume, peaks=False)
    run = RunFolder(Path(plan.run_folder))
    prepare_run(run, known, plan)
    return run, plan


def fork(run: RunFolder, plan: Plan, rank_main: Callable[[RunFolder, Path], None]) -> list[dict[str, Any]]:
    """Start the ranks of a prepared run, wait for them, and give what each wrote into its file.

    Raises RuntimeError with every rank's log if one fails."""
    group = plan.group("policy")
    outs = [run.path / f"rank{rank}.json" for rank in range(group.num_processes)]
    logs = [out.with_suffix(".log") for out in outs]
    if any(wait_for(start_ranks(group, logs, lambda rank: rank_main(run, outs[rank])))):
        raise RuntimeError("\n".join(log.read_text() for log in logs))
    return [json.loads(out.read_text()) for out in outs]


def in_children(tasks: Mapping[str, Callable[[], Any]], at_once: int = 2) -> Iterator[tuple[str, Any]]:
    """Do each in a child of this process. As they end: the name, and what the task gave, which JSON has to hold.

    Raises RuntimeError with what it had printed if one fails."""
    waiting, running = list(tasks.items()), {}
    with tempfile.TemporaryDirectory() as place:
        while waiting or running:
            while waiting and len(running) < at_once:
                name, task = waiting.pop(0)
                out = Path(place, f"{len(waiting)}.json")
                running[start_child(partial(_give, task, out), out.with_suffix(".log"))] = name, out
            child, status = os.wait()
            name, out = running.pop(child)
            if status:
                raise RuntimeError(f"{name}\n{out.with_suffix('.log').read_text()}")
            yield name, json.loads(out.read_text())


def _give(task: Callable[[], Any], out: Path) -> None:
    stop_with_parent()
    out.write_text(json.dumps(task()))


def start_ranks(group: GroupPlan, logs: Sequence[Path], rank_main: Callable[[int], None]) -> list[int]:
    """Start every rank of a group and give their process ids; each writes what it prints to a log of its own."""
    port = free_port("parallel.main_port")

    def main(rank: int) -> None:
        stop_with_parent()
        os.environ.update(environment(group, rank, port))
        rank_main(rank)

    return [start_child(partial(main, rank), log) for rank, log in enumerate(logs)]


def start_child(main: Callable[[], None], log: Path) -> int:
    """Do something in a child of this process, whose exit code is 1 if that raises. Its process id."""
    if child := os.fork():
        return child
    code = 1
    try:
        descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        main()
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wait_for(children: Iterable[int]) -> list[int]:
    """Their exit codes; minus the signal's number for one that was killed."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


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


def described_here(question: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ModelFacts, list[str]]]:
    """For plan.describe._ask: from the function that it asks in a process of its own, which would import torch."""
    from scaleup.describe.answer import answer

    reply = answer(list(question))
    assert not reply["problems"], reply["problems"]
    for request, facts, notes in zip(question, reply["facts"], reply["notes"], strict=True):
        yield request["where"], ModelFacts.model_validate(facts), notes
