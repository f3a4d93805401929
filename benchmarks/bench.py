"""All comparisons side by side, rendered into RESULTS.md.

    make bench                        all of them
    make bench ONLY="sft dpo"         these; the other rows stay, with their dates
    make bench-check                  measure again, and compare ratios and memory with the recorded ones

A comparison is one command of a script beside this file, which measures both sides one after the other and writes rows
of JSON; it is repeated, so the sides take turns. Nothing is measured here but what other processes took meanwhile."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import results

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results.json"
PAGE = ROOT / "benchmarks/RESULTS.md"
TRL_WITH_PPO = ROOT / ".cache/benchmarks/trl-1.12.0"
PACKAGES = ("torch", "transformers", "accelerate", "trl", "deepspeed", "peft")


@dataclass(frozen=True)
class Measure:
    """Names the values of a script's row that are compared: `theirs.seconds` is row["theirs"]["seconds"]."""

    name: str
    kind: str
    unit: str
    theirs: str
    ours: str


def both(name: str, kind: str, unit: str, key: str) -> Measure:
    return Measure(name, kind, unit, f"theirs.{key}", f"ours.{key}")


@dataclass(frozen=True)
class Comparison:
    name: str
    about: str
    """Says what is compared with what."""
    command: str
    measures: tuple[Measure, ...]
    peer: str | Path = ""
    """Is the package, or the folder with it, without which there is no other side."""
    repeats: int = 3


SECONDS, MEMORY = both("time of a step", "seconds", "s", "seconds"), both("memory", "memory", "MiB", "memory_mib")
ROLLOUT = both("time of a rollout", "seconds", "s", "seconds")

COMPARISONS = (
    Comparison(
        "sft",
        "Full fine-tuning of SmolLM2-135M in float32 on 64 reviews, TRL's `SFTTrainer` in batches of 16 as they come, "
        "and `scaleup run` in batches of as many tokens: see [sft.md](sft.md).",
        "sft.py --no-share reviews,fp32,off,64",
        (both("real tokens a second", "rate", "tokens/s", "rate"), MEMORY),
        peer="trl",
    ),
    Comparison(
        "dpo",
        "DPO of SmolLM2-135M with LoRA on 32 pairs, 8 a batch, TRL's `DPOTrainer` and `scaleup run`, with pairs of "
        "similar length together and as they come: see [preferences.md](preferences.md).",
        "preferences.py --pairs 32 lora,adapter_off",
        (SECONDS, both("as they come", "seconds", "s", "plain_seconds"), MEMORY),
        peer="trl",
    ),
    Comparison(
        "reward",
        "A reward model on the same pairs: SmolLM2-135M with a new head, all of it trained, TRL's `RewardTrainer` and "
        "`scaleup run`.",
        "preferences.py --pairs 32 full,reward",
        (SECONDS, both("as they come", "seconds", "s", "plain_seconds"), MEMORY),
        peer="trl",
    ),
    Comparison(
        "grpo",
        "GRPO on a word game, TRL's `GRPOTrainer` and our trainer, rollout by rollout in turns, the first two not "
        "counted: a small model, so what is compared is all that is not matrix products. With real models: "
        "[rl.md](rl.md).",
        "grpo.py --systems trl-grpo grpo --seeds 0 --rollouts 12",
        (ROLLOUT, MEMORY),
        peer="trl",
    ),
    Comparison(
        "ppo",
        "PPO on the same game, the last TRL that had a `PPOTrainer` (1.12.0) and our trainer with a value model of its "
        "own, as TRL has, and with our default: see [ppo.md](ppo.md).",
        "ppo.py --seeds 0 --rollouts 12",
        (ROLLOUT, MEMORY),
        peer=TRL_WITH_PPO,
    ),
    Comparison(
        "distill",
        "Forward KL of 512 positions over 49,152 tokens, forward and backward on one thread: our fused head beside "
        "each of the others: see [distill.md](distill.md). Memory is what comes on top of the inputs.",
        "distill.py --tokens 512 --divergences forward_kl",
        (both("CPU time", "seconds", "s", "seconds"), both("memory", "memory", "MiB", "mib")),
    ),
    Comparison(
        "start",
        "From the command to the end of the first optimizer step of SmolLM2-135M: a Python process with TRL, and "
        "`scaleup run` with its checks, plan and launcher.",
        "starting.py reviews,fp32,off,16",
        (both("start to first step", "seconds", "s", "seconds"),),
        peer="trl",
    ),
    Comparison(
        "load",
        "The most memory that a rank has from its start to its first step, of a Llama of 268 million parameters on two "
        "processes: weights read one after another into the shards, and a whole model loaded first (theirs: the same "
        "code without that): see [scale.md](scale.md#loading).",
        "loading.py zero3,2,no,full fsdp2,2,no,full",
        (
            Measure("most until its first step", "memory", "bytes", "whole.peak", "peak"),
            Measure("most before it is sharded", "memory", "bytes", "whole.loaded", "loaded"),
        ),
    ),
    Comparison(
        "tokenize",
        "50,000 rows become tokens: from the command until a run of ours has tokenized them on two processes, trained "
        "20 steps and ended, beside a process in which TRL's `SFTTrainer` tokenizes them and trains nothing; and a "
        "second start of ours beside the first: see [scale.md](scale.md#tokenizing-once).",
        "tokenizing.py --trl 50000",
        (both("seconds", "seconds", "s", "seconds"),),
        peer="trl",
    ),
    Comparison(
        "checkpoint",
        "How long a checkpoint of 1.5 GiB keeps the training waiting: written in the background (`train.async_save`), "
        "and not (theirs), by turns in one process: see [scale.md](scale.md#checkpoints-in-the-background).",
        "saving.py --rounds 2",
        (both("wait", "seconds", "s", "seconds"),),
    ),
    Comparison(
        "scaling",
        "Fine-tuning as in sft: tokens a second for each of two DDP processes on two cores, beside those of one "
        "process on one core (theirs). The ratio is the efficiency.",
        "sft.py --processes --repeats 1 reviews,fp32,off,64",
        (Measure("tokens a second and process", "rate", "tokens/s", "one", "half"),),
    ),
    Comparison(
        "control-plane",
        "What a shared folder sees of 128 agents with 1,024 ranks that stand in, while there is no news, time passing "
        "three times faster for them: operations of a node in 3 s, beside the one that it may have (theirs): see "
        "[control_plane.md](control_plane.md).",
        "control_plane.py --steady --speed 3",
        (Measure("operations", "count", "a node in 3 s", "allowed", "counted"),),
    ),
    Comparison(
        "memory-plan",
        "The peak of a rank's tensors as `scaleup plan` foretells it, beside the measured one (theirs): see "
        "[memory/peak.md](memory/peak.md).",
        "memory/peak.py ddp,2,no,off,64 zero2,2,no,off,64 zero3,2,no,off,64 fsdp2,2,bf16,on,64",
        (Measure("planned peak", "plan", "bytes", "storages", "predicted"),),
    ),
)


def run(comparison: Comparison) -> results.Record:
    """Returns the row of a comparison, measured now."""
    began, busy, spent = time.monotonic(), _busy_seconds(), _spent_by_children()
    row: results.Record = {"about": comparison.about, "command": f"benchmarks/{comparison.command}"}
    row["date"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if missing := _missing(comparison.peer):
        row["skipped"] = missing
    else:
        row["measures"] = measures_of(comparison, [_once(comparison) for _ in range(comparison.repeats)])
    row["seconds"] = time.monotonic() - began
    others = (_busy_seconds() - busy) - (_spent_by_children() - spent)
    return row | {"conditions": _conditions() | {"others": max(0.0, others) / row["seconds"]}}


def measures_of(comparison: Comparison, repeats: list[list[dict[str, Any]]]) -> list[results.Record]:
    """Returns the measures of each case, from the rows that the script wrote at each repeat."""
    found = []
    for number, first in enumerate(repeats[0]):
        if "skipped" in first:
            found.append({"name": first["case"], "skipped": first["skipped"]})
            continue
        for each in comparison.measures:
            pairs = [(_at(rows[number], each.ours), _at(rows[number], each.theirs)) for rows in repeats]
            name = f"{each.name}, {first['case']}" if len(repeats[0]) > 1 else each.name
            found.append(results.measure(name, each.kind, each.unit, pairs))
    return found


def _at(row: dict[str, Any], place: str) -> float:
    value: Any = row
    for key in place.split("."):
        value = value[key]
    return float(value)


def _once(comparison: Comparison) -> list[dict[str, Any]]:
    script, *words = comparison.command.split()
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as place:
        out = Path(place, "rows.json")
        command = [sys.executable, str(ROOT / "benchmarks" / script), *words, "--json", str(out)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{comparison.name}: {' '.join(command)} ended with {done.returncode}\n{done.stderr[-3000:]}")
        rows: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
        return rows


def _missing(peer: str | Path) -> str:
    if isinstance(peer, Path):
        return "" if peer.is_dir() else f"{peer.relative_to(ROOT)} is not there"
    return "" if not peer or importlib.util.find_spec(peer) else f"{peer} is not installed"


def _busy_seconds() -> float:
    """Returns what all processes of this machine have used of its cores since it started."""
    user, nice, system, _, _, irq, softirq, *_ = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, irq, softirq))) / os.sysconf("SC_CLK_TCK")


def _spent_by_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _conditions() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    newest = ["git", "log", "-1", "--format=%h", "--", "scaleup"]  # which changed what is measured
    commit = subprocess.run(newest, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    machine = names[0] if names else platform.machine()
    return {"machine": machine, "cores": os.cpu_count(), "commit": commit, "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="names of comparisons; all without any")
    parser.add_argument("--check", action="store_true", help="compare with the recorded results, and write nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept, the page beside it")
    asked = parser.parse_args()
    if unknown := set(asked.only) - {each.name for each in COMPARISONS}:
        parser.error(f"{', '.join(sorted(unknown))}: there is {', '.join(each.name for each in COMPARISONS)}")
    chosen = [each for each in COMPARISONS if not asked.only or each.name in asked.only]
    known, is_as_it_was = results.read(asked.results), True
    for comparison in chosen:
        print(f"== {comparison.name}: {comparison.command}", flush=True)
        row = run(comparison)
        if asked.check:
            is_as_it_was &= _told(known.get(comparison.name), row)
            continue
        known = {each.name: known[each.name] for each in COMPARISONS if each.name in known} | {comparison.name: row}
        known = {each.name: known[each.name] for each in COMPARISONS if each.name in known}
        results.write(asked.results, json.dumps(known, indent=1) + "\n")
        results.write(asked.results.with_name(PAGE.name), results.render(known, [each.name for each in COMPARISONS]))
        for each in row.get("measures", [row]):
            print(f"   {each.get('name', '')} {each.get('skipped') or results.spread(each['ratios'])}", flush=True)
    sys.exit(0 if is_as_it_was else 1)


def _told(old: results.Record | None, new: results.Record) -> bool:
    verdicts = [("is not recorded: make bench", False)] if old is None else results.check(old, new)
    for sentence, is_well in verdicts:
        print(f"   {'ok   ' if is_well else 'NOT  '}{sentence}", flush=True)
    return all(is_well for _, is_well in verdicts)


if __name__ == "__main__":
    main()
