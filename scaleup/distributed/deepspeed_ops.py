"""This module compiles DeepSpeed's C++ operations for CPUs once, in a folder of ours, and loads them; and it imports
libraries without torch's compiler.

DeepSpeed compiles them on first use without a word, and torch's build lock outlives a killed build: later runs wait for
it for ever. So every process loads them here before DeepSpeed does, one process at a time under a lock that the kernel
releases when its holder ends. DeepSpeed finds them loaded and builds nothing; a torch lock that is seen here is
stale."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from scaleup.artifacts.files import cache_folder
from scaleup.errors import ScaleupError

OPS = ("ShareMemCommBuilder", "CPUAdamBuilder")
"""Names the operations of runs on CPUs: every gloo run needs the first, offloaded optimizers the second."""

Announce = Callable[[str], None]


class Builder(Protocol):
    """Describes the part of a DeepSpeed op builder that is used here."""

    name: str

    def load(self, verbose: bool = False) -> object:
        """Compiles the op unless that is done, and imports it."""


def ops_folder() -> Path:
    """Returns the folder `deepspeed-ops/KEY` in scaleup's cache. The key covers what a build depends on: torch,
    deepspeed and Python, where they are installed, the compiler's name and the CPU's instructions (different machines
    share home folders).

    Raises ScaleupError if a package is missing."""
    try:
        packages = [metadata.distribution(name) for name in ("torch", "deepspeed")]
    except metadata.PackageNotFoundError as error:
        what, remedy = "the package is not installed, and ZeRO needs it", "pip install 'scaleup[deepspeed]'"
        raise ScaleupError.of(str(error.name), what, remedy) from error
    recipe = [sys.implementation.cache_tag, os.environ.get("CXX", ""), _cpu()]
    recipe += [f"{package.version} {package.locate_file('')}" for package in packages]
    key = hashlib.sha256("\n".join(recipe).encode()).hexdigest()[:12]
    return cache_folder() / "deepspeed-ops" / f"{packages[1].version}-{key}"


def ensure_built(ops: Sequence[str], announce: Announce) -> None:
    """Builds (once, under a lock, with a line to `announce`) and loads DeepSpeed's ops, named by their builders'
    classes.

    Call it in every process, before DeepSpeed starts. Ops that this machine's accelerator has no use for are left out.
    Raises ScaleupError: no deepspeed, ninja or compiler, a failed build, or the lock of a killed one."""
    folder = ops_folder()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    tools = str(Path(sys.executable).parent)  # ninja's place when the virtual environment is not activated
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([tools, *(entry for entry in path if entry != tools)])
    if shutil.which("ninja") is None:  # torch asks for it even when there is nothing to build
        raise ScaleupError.of("ninja", "not found: DeepSpeed needs it", "pip install 'scaleup[deepspeed]'")
    build(folder, _builders(ops), announce)


def build(folder: Path, builders: Sequence[Builder], announce: Announce) -> None:
    """Loads each builder's op, which compiles it into `folder` the first time. Raises ScaleupError."""

    def say_waiting() -> None:
        if not all(_marker(folder, builder).exists() for builder in builders):
            announce("Waiting for another process that compiles DeepSpeed's operations ...")

    with _locked(folder, say_waiting):
        for builder in builders:
            _load(folder, builder, announce)


def _load(folder: Path, builder: Builder, announce: Announce) -> None:
    lock, built = folder / builder.name / "lock", _marker(folder, builder)
    if lock.exists():
        what = "left by a build that was killed: torch would wait for it for ever"
        raise ScaleupError.of(str(lock), what, "delete it")
    if not built.exists():
        _check_compiler()
        announce(f"Compiling DeepSpeed's {builder.name} for this machine: a few minutes, and only once ...")
    try:
        builder.load(verbose=False)  # quiet: else the compiler's words go to stdout and not into the error
    except (RuntimeError, ImportError) as error:
        lines = [f"  {line[:200]}" for line in str(error).splitlines() if line.strip()]
        what = "\n".join(["cannot be built:", *lines[-12:]])
        remedy = "install what the compiler misses (Debian: apt install g++ python3-dev)"
        raise ScaleupError.of(f"DeepSpeed's {builder.name}", what, remedy) from error
    built.parent.mkdir(exist_ok=True)  # an op compiled when deepspeed was installed has no folder here
    built.touch()


def _marker(folder: Path, builder: Builder) -> Path:
    return folder / builder.name / "built"


@contextmanager
def _locked(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Lets one process at a time in. The kernel releases the lock when its holder ends, however it ends; a lock that
    could outlive it, filelock's way out on file systems without flock, is refused."""
    lock = FileLock(folder / ".flock", fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waiting()
            lock.acquire()
    except OSError as error:
        remedy = "set XDG_CACHE_HOME to a folder that can be written and locked"
        raise ScaleupError.of(str(folder), f"cannot write and lock files here: {error.strerror}", remedy) from error
    try:
        yield
    finally:
        lock.release()


def _check_compiler() -> None:
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler.split()[0]) is None:
        what = f"the C++ compiler {compiler!r} was not found, and DeepSpeed compiles its operations"
        raise ScaleupError.of("CXX", what, "install one (Debian: apt install g++), or set CXX=/path/to/g++")


def _builders(ops: Sequence[str]) -> list[Builder]:
    from deepspeed.accelerator import get_accelerator

    builders = [get_accelerator().create_op_builder(op) for op in ops]
    return [builder for builder in builders if builder is not None and builder.is_compatible()]


def _cpu() -> str:
    """Returns the CPU's instructions: DeepSpeed compiles for exactly these."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


@contextmanager
def uncompiled() -> Iterator[None]:
    """Imports libraries inside without torch's compiler: functions that they decorate with `torch.compile` stay as they
    are. We never call those, and importing the compiler takes seconds in every worker."""
    import torch  # not above: `make setup` runs this file

    compile_function = torch.compile
    try:
        torch.compile = lambda model=None, **_: model or (lambda plain: plain)  # type: ignore[assignment]
        yield
    finally:
        torch.compile = compile_function


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Builds what every ZeRO run on CPUs needs; `make setup` calls it. The optimizer's op is built when it is first
    offloaded."""
    try:
        ensure_built(OPS[:1], _say)
    except ScaleupError as error:
        _say(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
