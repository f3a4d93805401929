"""Runs that are hurt at random, and what became of each: whether it ends with the weights of a run nobody touched.

From the repository's root, after `make setup`; it needs no network and no GPU, and root for the small disk:

    .venv/bin/python benchmarks/faults.py

A tiny SFT run of two processes (DDP) and a tiny PPO run (a policy, and a reward group of its own), through the command
line. Each is hurt once, in a way and at a step that are drawn from `--seed`. A run that does not end with exit code 0
by itself is started again with `--resume`, as a scheduler would. Every end must be the undisturbed run's weights, or an
error that names what went wrong; every checkpoint that is left must be as it was written; and no process may be left.
The table goes to benchmarks/faults.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", PYTHONPATH=str(ROOT))

from scaleup.artifacts.checkpoints import damage_of, latest_checkpoint  # noqa: E402
from tests.cli import (  # noqa: E402
    command_line,
    differing,
    folder_of,
    largest_weight_difference,
    logs,
    reached,
    run,
    start,
    wait_until,
    write_config,
)
from tests.small_runs import write_rows  # noqa: E402

TIMEOUT = 300.0
"""Seconds that a run may take, hurt or not."""
DATA = {"train": "rows.jsonl", "prompt": "{prompt}", "completion": "{completion}", "max_length": 64}
PARALLEL = {"heartbeat_timeout_seconds": 20}
SFT: dict[str, Any] = {
    "stage": "sft",
    "model": {"path": "builtin:tiny-llama"},
    "data": DATA,
    "train": {"max_steps": 300, "learning_rate": 1e-3, "per_device_train_batch_size": 2, "save_steps": 20},
    "parallel": {"num_processes": 2, **PARALLEL},
}
PPO: dict[str, Any] = {
    "stage": "ppo",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{prompt}", "max_length": 32},
    "ppo": {"num_rollouts": 20, "rollout_batch_size": 4, "num_ppo_epochs": 1, "max_new_tokens": 6},
    "reward": {"model": {"path": "builtin:tiny-bert-classifier"}, "label": "positive", "parallel": PARALLEL},
    "train": {"learning_rate": 1e-3, "save_steps": 2},
    "parallel": PARALLEL,
}
CONFIGS = {"SFT": SFT, "PPO": PPO}
LAST = {"SFT": 240, "PPO": 16}
"""The last step after which a run is hurt: it must not be over by then."""


@dataclass(frozen=True)
class Kind:
    name: str
    stages: tuple[str, ...]
    says: str
    """What must be read in what the user saw; a regular expression."""


KINDS = [
    Kind("SIGKILL a worker", ("SFT", "PPO"), r"policy-rank\d was killed by signal 9"),
    Kind("SIGKILL the agent", ("SFT", "PPO"), ""),
    Kind("SIGKILL the reward worker", ("PPO",), r"reward-rank0 was killed by signal 9"),
    Kind("SIGSTOP a worker", ("SFT", "PPO"), r"policy-rank\d on host \S+ hangs: no sign of life for 20 s"),
    Kind("SIGSTOP the reward worker", ("PPO",), r"reward-rank0 on host \S+ hangs: no sign of life for 20 s"),
    Kind("SIGTERM to the job", ("SFT", "PPO"), "was stopped and can go on"),
    Kind("full disk", ("SFT", "PPO"), r"nothing can be written to \S+: No space left|No space left on device"),
    Kind("newest checkpoint truncated", ("SFT", "PPO"), r"is not used: \S+ has \d+ bytes, and \d+ were written"),
    Kind("newest checkpoint, one bit flipped", ("SFT", "PPO"), "is not used: .*(checksum|cannot be read)"),
]


@dataclass(frozen=True)
class Fault:
    number: int
    kind: Kind
    stage: str
    after: int
    """The step that the run has logged when it is hurt."""
    rank: int
    max_restarts: int
    place: float
    """Where in a checkpoint, as a share of its bytes."""

    @property
    def is_at_rest(self) -> bool:
        """Whether a checkpoint is hurt: then a worker is killed first, so that the run ends and is resumed."""
        return self.kind.name.startswith("newest checkpoint")

    @property
    def config(self) -> dict[str, Any]:
        restarts = {"name": f"fault-{self.number}", "parallel.max_restarts": self.max_restarts}
        return differing(CONFIGS[self.stage], restarts)


@dataclass
class Row:
    number: int
    run: str
    fault: str
    after: int
    restarts: int
    saw: str = ""
    codes: str = ""
    """Exit codes of the run, and of the one that resumed it."""
    difference: float | None = None
    left: int = 0
    seconds: float = 0.0
    wrong: str = ""


def drawn(count: int, seed: int, can_mount: bool) -> list[Fault]:
    """Every kind comes as often as every other, in a random order."""
    chance = random.Random(seed)
    pairs = [(k, stage) for k in KINDS for stage in k.stages if can_mount or k.name != "full disk"]
    chosen = [pairs[number % len(pairs)] for number in range(count)]
    chance.shuffle(chosen)
    faults = [
        Fault(
            number,
            kind,
            stage,
            chance.randint(3, LAST[stage]),
            chance.randrange(2),
            chance.randrange(2),
            chance.random(),
        )
        for number, (kind, stage) in enumerate(chosen, 1)
    ]
    return [replace(fault, max_restarts=0) if fault.is_at_rest else fault for fault in faults]


def pid_of(folder: Path, rank_name: str) -> int:
    newest = max(folder.glob("attempts/*"), key=lambda attempt: int(attempt.name))
    return int(json.loads((newest / f"workers/{rank_name}.json").read_text())["pid"])


def hurt(fault: Fault, process: subprocess.Popen[str], folder: Path) -> None:
    """What happens while it runs."""
    name = fault.kind.name
    if name == "full disk":
        fill(folder.parent.parent)
    elif name == "SIGTERM to the job":
        process.terminate()
    elif name == "SIGKILL the agent":
        process.kill()
    else:
        rank = fault.rank if fault.stage == "SFT" else 0
        worker = "reward-rank0" if "reward" in name else f"policy-rank{rank}"
        os.kill(pid_of(folder, worker), signal.SIGSTOP if "SIGSTOP" in name else signal.SIGKILL)


def hurt_at_rest(fault: Fault, folder: Path) -> None:
    """What happens to its newest checkpoint once it has ended."""
    newest = latest_checkpoint(folder / "checkpoints")
    assert newest is not None
    files = sorted(file for file in newest.path.rglob("*") if file.is_file() and file.name != "checkpoint.json")
    place = int(fault.place * sum(file.stat().st_size for file in files))
    for file in files:
        if place < (size := file.stat().st_size):
            break
        place -= size
    if "truncated" in fault.kind.name:
        os.truncate(file, place)
    else:
        with file.open("r+b") as opened:
            opened.seek(place)
            [byte] = opened.read(1)
            opened.seek(place)
            opened.write(bytes([byte ^ (1 << fault.number % 8)]))


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@contextmanager
def plain_folder(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def left_running(folder: Path) -> list[int]:
    """Agents, launchers and workers of a run, by their command lines."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    names = {str(folder), str(folder.parent.parent / f"{folder.name}.yaml")}
    return [pid for pid in pids if not names.isdisjoint(command_line(pid))]


def ended(process: subprocess.Popen[str], folder: Path) -> tuple[int, str]:
    """Exit code, and all that the user saw. Raises AssertionError when it does not end in time."""
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        end_all(process, folder)
        raise AssertionError(f"did not end in {TIMEOUT:.0f} s") from None
    return process.returncode, f"{stdout}\n{stderr}"


def end_all(process: subprocess.Popen[str], folder: Path) -> None:
    process.kill()
    for pid in left_running(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=30)


def suffer(fault: Fault, place: Path, straight: Path, row: Row) -> None:
    """One run, hurt once, to its end. Raises AssertionError for an end that must not be."""
    folder = folder_of(fault.config, place)
    during = replace(fault, kind=KINDS[0]) if fault.is_at_rest else fault
    file = write_config(fault.config, place)
    with start("run", file, cwd=place) as process:
        try:
            wait_until(lambda: process.poll() is not None or reached(fault.after)(folder), TIMEOUT, every=0.002)
            assert process.poll() is None, "ended before it was hurt"
            hurt(during, process, folder)
            code, saw = ended(process, folder)
        except AssertionError:
            end_all(process, folder)
            raise
    row.codes = str(code)
    newest = latest_checkpoint(folder / "checkpoints")
    assert newest is None or not damage_of(newest), f"{newest}: {damage_of(newest) if newest else ''}"
    if code != -signal.SIGKILL:  # then workers save and end, which the next start waits for
        row.left += len(left_running(folder))
    if fault.is_at_rest and newest:
        hurt_at_rest(fault, folder)
    with suppress(FileNotFoundError):
        (folder.parent.parent / "filler").unlink()
    if code:
        with start("run", file, "--resume", cwd=place) as process:
            code, more = ended(process, folder)
        row.codes += f", {code}"
        saw += more
        assert code == 0, f"resumed, and ended with {code}"
    row.saw = what_it_saw(saw, fault.kind.says).replace(str(folder), "RUN")
    row.left += len(left_running(folder))
    row.difference = largest_weight_difference(straight, folder)
    assert row.difference <= (0 if fault.stage == "SFT" else 1e-6), "other weights"
    assert not row.left, "processes are left"
    assert re.search(fault.kind.says, saw) or (fault.is_at_rest and newest is None), f"nothing named it:\n{saw}"


def what_it_saw(text: str, says: str) -> str:
    """The line that names it."""
    lines = [line for line in text.splitlines() if says and re.search(says, line)]
    return lines[-1].strip().removeprefix("error: ") if lines else ""


def campaign(faults: list[Fault], place: Path, at_once: int, tell: Callable[[Row], None]) -> list[Row]:
    straight = {stage: run(config | {"name": f"straight-{stage}"}, cwd=place) for stage, config in CONFIGS.items()}

    def one(fault: Fault) -> Row:
        began = time.monotonic()
        row = Row(fault.number, fault.stage, fault.kind.name, fault.after, fault.max_restarts)
        where = small_disk if fault.kind.name == "full disk" else plain_folder
        with where(place / f"fault-{fault.number}") as folder:
            shutil.copy(place / "rows.jsonl", folder)
            try:
                suffer(fault, folder, straight[fault.stage], row)
            except AssertionError as error:
                row.wrong = str(error)
                print(logs(folder_of(fault.config, folder)), file=sys.stderr)
        row.seconds = time.monotonic() - began
        tell(row)
        return row

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, faults))


def page(rows: list[Row], command: str, minutes: float) -> str:
    day = datetime.now(UTC)
    machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, gloo, no GPU"
    lines = [
        "# Runs that are hurt",
        "",
        f"    {command}",
        "",
        f"{day.day} {day:%B %Y}, {machine}. What is done to whom stands at the head of [faults.py](faults.py).",
        "",
        "| # | run | fault | after step | restarts allowed | the user saw | exit codes | weight difference | left |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        difference = "" if row.difference is None else f"{row.difference:.1e}" if row.difference else "0"
        saw = (f"**{row.wrong}** " if row.wrong else "") + row.saw.replace("|", "/")
        cells = [row.number, row.run, row.fault, row.after, row.restarts, saw, row.codes, difference, row.left]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    bad = [row for row in rows if row.wrong]
    kinds = Counter(row.fault for row in rows)
    lines += [
        "",
        f"{len(rows)} faults of {len(kinds)} kinds in {minutes:.0f} minutes; "
        f"{len(rows) - len(bad)} ended as they must, {len(bad)} did not.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time; with more, a fault takes longer")
    parser.add_argument("--only", type=int, nargs="*", help="of the faults drawn, those with these numbers")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/faults.md")
    chosen = parser.parse_args()
    faults = drawn(chosen.faults, chosen.seed, os.geteuid() == 0)
    faults = [fault for fault in faults if not chosen.only or fault.number in chosen.only]
    with tempfile.TemporaryDirectory() as name:
        place, began = Path(name), time.monotonic()
        write_rows(place)
        done = campaign(faults, place, chosen.at_once, lambda row: print(json.dumps(asdict(row)), flush=True))
    command = f".venv/bin/python benchmarks/faults.py --faults {chosen.faults} --seed {chosen.seed}"
    command += f" --at-once {chosen.at_once}" if chosen.at_once > 1 else ""
    chosen.out.write_text(page(done, command, (time.monotonic() - began) / 60), encoding="utf-8")
    return 1 if any(row.wrong for row in done) else 0


if __name__ == "__main__":
    sys.exit(main())
