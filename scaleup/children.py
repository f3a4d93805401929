"""This module makes what further Python processes are started with. Their environment: they import this very package,
and nothing that merely lies in the folder where the user stands, and take themselves for nobody else's. Their stderr:
what they do is shown, and what else they print is kept until it is known how they ended."""

from __future__ import annotations

import os
import re
import signal
import site
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import scaleup

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Say to OpenMP and MKL how many threads a process has; a run's plan says that too."""
COUNTS = (*THREADS, "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS")
"""Are read with `int` somewhere among what we import, which fails on lists, on nothing at all and on words."""

PROGRESS = "checking "
"""Begins the lines that say what a process does, and are shown at once."""
LAST_SECONDS = 5.0
"""What is waited for the last words of a process that has ended: somebody else may hold its stderr."""
TRACEBACK = re.compile(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n)*(?P<what>\S.*)", re.MULTILINE)

PLACES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    *(f"PET_{name}" for name in ("NNODES", "NPROC_PER_NODE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "STANDALONE")),
    *(f"PET_RDZV_{name}" for name in ("BACKEND", "CONF", "ENDPOINT", "ID")),
)
"""Say which process of how many this one is, to whoever another launcher has started: torchrun, mpirun, Kubeflow."""


def python_environment(threads: int | None = None) -> dict[str, str]:
    """Returns this process's environment as a Python process of ours gets it, with so many threads (None: what the user
    set, where that is a number)."""
    environment = {key: value for key, value in os.environ.items() if key not in PLACES}
    for name in odd_counts(environment):
        del environment[name]
    if threads is not None:
        environment |= dict.fromkeys(THREADS, str(threads))
    # `python -m` would look into the working folder first, and take a random.py there for the standard library's
    environment["PYTHONSAFEPATH"] = "1"
    environment.pop("PYTHONOPTIMIZE", None)  # Transformers reads docstrings, and our own checks are to run
    environment.pop("PYTHONPATH", None)
    if path := _path(environment_path=os.environ.get("PYTHONPATH", "")):
        environment["PYTHONPATH"] = path
    return environment


def visible_devices(first: int, count: int) -> str:
    """Returns the CUDA_VISIBLE_DEVICES of a process that has `count` of the GPUs seen here, from `first` on."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible is not None else [str(number) for number in range(first + count)]
    return ",".join(devices[first : first + count])


def is_count(text: str) -> bool:
    """Returns whether a variable holds a plain number above 0."""
    return text.strip().isdecimal() and int(text) > 0


def odd_counts(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that hold no plain number of threads: OpenMP's lists, e.g. `4,2`, and what is a mistake."""
    return {name: environment[name] for name in COUNTS if name in environment and not is_count(environment[name])}


def _path(environment_path: str) -> str:
    """Returns PYTHONPATH with the folder of this package first, unless it is where Python looks anyway. An empty entry
    stands for the working folder, and is an accident of `PYTHONPATH=$PYTHONPATH:...`."""
    own = Path(scaleup.__file__).parents[1]
    installed = [Path(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())]
    entries = [entry for entry in environment_path.split(os.pathsep) if entry]
    return os.pathsep.join(entries if own in installed else [str(own), *entries])


@dataclass
class Stderr:
    """Takes what a process prints to the `descriptor`, and keeps all but its progress in `lines`."""

    descriptor: int
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def cause(self, code: int) -> str:
        """Returns why a process ended with an exit code: its last error, or else its last words."""
        told = [found["what"] for found in TRACEBACK.finditer(self.text)] or self.text.split("\n")
        words = [line.strip() for line in told if line.strip()][-1:]
        how = f"ended by {signal.Signals(-code).name}" if -code in list(signal.Signals) else f"exit code {code}"
        return ": ".join([how, *words]) if code < 0 or not words else words[0]


@contextmanager
def kept_stderr() -> Iterator[Stderr]:
    """Gives a process its stderr, of which all is there when the block ends. Progress is shown as it comes."""
    read, write = os.pipe()
    kept = Stderr(write)
    reader = Thread(target=_keep, args=(read, kept), daemon=True)
    reader.start()
    try:
        yield kept
    finally:
        os.close(write)
        reader.join(LAST_SECONDS)


def asked(command: Sequence[str], question: str) -> tuple[subprocess.CompletedProcess[str], Stderr]:
    """Returns how a Python process of ours that was given a question on stdin ended, with its stdout, and its
    stderr."""
    with kept_stderr() as stderr:
        done = subprocess.run(
            command,
            input=question,
            stdout=subprocess.PIPE,
            stderr=stderr.descriptor,
            text=True,
            check=False,
            env=python_environment(),
        )
    return done, stderr


def _keep(descriptor: int, kept: Stderr) -> None:
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as pipe:
        is_open = False
        for line in pipe:
            if not line.startswith(PROGRESS):
                kept.lines.append(line)
                continue
            is_open = sys.stderr.isatty()  # there a line takes the place of the one before
            print(f"\r\033[K{line.rstrip()}" if is_open else line, end="", file=sys.stderr, flush=True)
        if is_open:
            print(file=sys.stderr, flush=True)
