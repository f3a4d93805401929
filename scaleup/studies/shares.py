"""A machine goes in; the shares come out that runs side by side have of it, and a run's command is started on one.

Shares are equal and fixed: a run computes on as many cores whatever runs beside it, and so what it did before."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.run_lock import holder_of, lock_holders
from scaleup.children import python_environment, visible_devices
from scaleup.config.load import Loaded
from scaleup.errors import Problem
from scaleup.launcher.signals import StopSignals
from scaleup.plan.cluster import nodes_of
from scaleup.plan.machine import Machine, this_machine

LIBC = ctypes.CDLL(None)  # loaded here, so that a forked child makes two system calls and nothing else
PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.1
Place = Callable[[Loaded], tuple[Loaded, Machine | None]]
"""Maps a config -> it as it will be run, with what is refused of it there, and the machine it will be on."""


@dataclass(frozen=True)
class Slot:
    """Is the share of the machine that one of several runs side by side has."""

    cores: tuple[int, ...]
    gpus: str | None
    """Is its CUDA_VISIBLE_DEVICES; None: as it is."""


def slots_of(machine: Machine, num_parallel: int) -> list[Slot]:
    """Returns the shares of a machine, equal and apart."""
    cores = sorted(os.sched_getaffinity(0))
    num_cores, num_gpus = len(cores) // num_parallel, machine.num_gpus // num_parallel
    return [
        Slot(
            tuple(cores[place * num_cores : (place + 1) * num_cores] if num_cores else cores),  # or all share them
            visible_devices(place * num_gpus, num_gpus) if num_parallel > 1 and num_gpus else None,
        )
        for place in range(num_parallel)
    ]


def share_of(machine: Machine, num_parallel: int) -> Machine:
    """Returns what each of so many runs side by side has of a machine, as a machine."""
    return replace(
        machine,
        num_cores=max(1, machine.num_cores // num_parallel),
        num_gpus=machine.num_gpus // num_parallel,
        memory=machine.memory and machine.memory // num_parallel,
    )


def share_problems(num_parallel: int, is_on_cpu: bool, machine: Machine) -> Iterator[Problem]:
    """Yields more runs side by side than there are devices; `is_on_cpu`: they leave GPUs alone."""
    is_on_cpu = is_on_cpu or not machine.num_gpus
    most, what = (machine.num_cores, "cores") if is_on_cpu else (machine.num_gpus, "GPUs")
    if num_parallel > most:
        yield Problem("num_parallel", f"is {num_parallel}, and there are {most} {what} here", f"use at most {most}")


def here(num_parallel: int, what: str) -> Place:
    """Returns the place of runs that a pipeline or a search starts itself: this machine, or the share of it that each
    has. `what` names who starts them."""
    share = share_of(this_machine(), num_parallel) if num_parallel > 1 else None

    def place(loaded: Loaded) -> tuple[Loaded, Machine | None]:
        if loaded.config is not None and nodes_of(loaded.config) > 1:
            refused = f"a {what} starts runs of one node here"
            problem = Problem("parallel.num_nodes", refused, "scaleup submit gives each run a job of its own")
            loaded = Loaded(loaded.config, [*loaded.problems, problem])
        return loaded, share

    return place


def start_on(slot: Slot, config_file: Path, output: int | IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts, or goes on with, the run of a config on a share of the machine. It is told to save and to stop when this
    process ends, however that ends."""
    environment = python_environment() | ({} if slot.gpus is None else {"CUDA_VISIBLE_DEVICES": slot.gpus})
    parent = os.getpid()

    def prepare() -> None:
        os.sched_setaffinity(0, slot.cores)
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return subprocess.Popen(
        [sys.executable, "-m", "scaleup.cli", "run", str(config_file), "--resume"],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # Ctrl-C is this process's, which tells them
        preexec_fn=prepare,
    )


def ask_to_stop(process: subprocess.Popen[bytes], at_once: bool) -> None:
    """Asks a run's command to save and to stop, or to end at once."""
    with suppress(ProcessLookupError):
        for number in [signal.SIGINT] * 2 if at_once else [signal.SIGTERM]:
            process.send_signal(number)


def wait_for_leftovers(runs: Mapping[str, RunFolder], signals: StopSignals, say: Callable[[str], None]) -> None:
    """Waits until runs whose starter was killed have saved and stopped, or a signal comes."""
    is_told = False
    while not signals.count:
        holders = lock_holders()
        busy = [name for name, run in runs.items() if holder_of(run, holders)]
        if not busy:
            break
        if not is_told:
            say(f"waiting until {', '.join(busy)} has stopped")
            is_told = True
        time.sleep(POLL_SECONDS)
