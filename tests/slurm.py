"""A real Slurm for tests: its controller and two nodes on this host, with ports, a key and a state folder of their own.

Debian: `make slurm` installs it. Root is needed; where anything is missing tests are skipped, with the reason."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli import wait_until

PROGRAMS = {"munged": "/usr/sbin/munged", "slurmctld": "/usr/sbin/slurmctld", "slurmd": "/usr/sbin/slurmd"}
NODES = ("n1", "n2")
REQUEUE_SECONDS = 5
"""A job that is requeued waits until credentials have expired: two minutes by default."""
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
LIBC = ctypes.CDLL(None)

CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={requeue}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
OverTimeLimit=1
MinJobAge=300
SlurmdParameters=config_overrides
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=8000 State=UNKNOWN\n"
PARTITIONS = """
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
PartitionName=high Nodes=n1,n2 MaxTime=60 PriorityTier=10 PreemptMode=OFF State=UP
"""


@dataclass(frozen=True)
class Slurm:
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """For `scaleup` and Slurm's own commands, and so for the jobs that they submit."""
        programs = str(Path(os.sys.executable).parent)  # type: ignore[attr-defined]
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{programs}:{os.environ['PATH']}"}

    def command(self, *argv: str | Path, cwd: Path | None = None) -> str:
        """What one of Slurm's commands printed."""
        words = [*map(str, argv)]
        done = subprocess.run(words, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says; of a heterogeneous job its first component."""
        first = self.command("scontrol", "-o", "show", "job", number).splitlines()[0]
        return dict(word.partition("=")[::2] for word in first.split())

    def state(self, number: str) -> str:
        return self.job(number)["JobState"]

    def wait(self, number: str, states: Sequence[str] = tuple(OVER), timeout: float = 150.0) -> dict[str, str]:
        """The job, once it is in one of these states."""
        try:
            wait_until(lambda: self.state(number) in states, timeout, every=0.2)
        except AssertionError:
            raise AssertionError(f"job {number} is {self.job(number)}\n{self.logs()}") from None
        return self.job(number)

    def logs(self) -> str:
        return "\n".join(
            f"--- {file}\n{file.read_text(errors='replace')}" for file in sorted(self.folder.glob("*.log"))
        )


@contextmanager
def slurm() -> Iterator[Slurm]:
    """Up while the context lasts. Skips the test where it cannot be."""
    missing = [name for name, path in PROGRAMS.items() if not Path(path).exists()]
    missing += [name for name in ("sbatch", "srun", "scontrol", "scancel") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip("a Slurm of our own needs root" + (f", and {', '.join(missing)}: make slurm" if missing else ""))
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # a socket's path may have 107 characters
    folder.chmod(0o755)
    made = Slurm(folder)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _write_conf(folder)
        stack.enter_context(_munge(folder / "munge"))
        conf = folder / "slurm.conf"
        stack.enter_context(_daemon([PROGRAMS["slurmctld"], "-D", "-c", "-f", str(conf)], folder / "slurmctld.out"))
        for name in NODES:
            (folder / f"spool.{name}").mkdir()
            daemon = [PROGRAMS["slurmd"], "-D", "-N", name, "-f", str(conf)]
            stack.enter_context(_daemon(daemon, folder / f"slurmd.{name}.out"))
        try:
            wait_until(lambda: _idle(made) == len(NODES), 30, every=0.2)
        except AssertionError:
            raise AssertionError(f"Slurm did not come up\n{made.logs()}") from None
        yield made
        made.command("scancel", "--user=root")
        wait_until(lambda: made.command("squeue", "-h") == "", 60, every=0.2)


def _write_conf(folder: Path) -> None:
    (folder / "state").mkdir()
    host = socket.gethostname().partition(".")[0]
    ports = _free_ports(1 + len(NODES))
    text = CONF.format(host=host, port=ports[0], folder=folder, requeue=REQUEUE_SECONDS)
    text += "".join(NODE.format(name=name, host=host, port=port) for name, port in zip(NODES, ports[1:], strict=True))
    (folder / "slurm.conf").write_text(text + PARTITIONS)


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _idle(slurm: Slurm) -> int:
    command = ["sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D"]
    done = subprocess.run(command, env=slurm.environment, capture_output=True, text=True, timeout=30)
    return int(done.stdout.strip() or 0)


@contextmanager
def _munge(folder: Path) -> Iterator[None]:
    """What Slurm's parts know one another by."""
    user = pwd.getpwnam("munge")
    folder.mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    for path in (folder, folder / "key"):
        os.chown(path, user.pw_uid, user.pw_gid)
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
    options = [f"--{option}={folder / file}" for option, file in files.items()]
    with _daemon([PROGRAMS["munged"], "--foreground", *options], folder.with_suffix(".out"), user.pw_uid, user.pw_gid):
        wait_until(lambda: (folder / "socket").exists(), 20)
        yield


@contextmanager
def _daemon(command: list[str], log: Path, uid: int = 0, gid: int = 0) -> Iterator[None]:
    """Ends with the test, and with us if we are killed."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, user=uid, group=gid, preexec_fn=_end_with_parent
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    LIBC.prctl(1, signal.SIGTERM)
