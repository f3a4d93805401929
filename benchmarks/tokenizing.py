"""How long a run of many rows takes until it ends, when it is the first to see them, and when it is not.

    .venv/bin/python benchmarks/tokenizing.py [NUM_ROWS]

NUM_ROWS (500,000) reviews of words drawn from `data/reviews` (`make setup`), of which some 40 % are longer than
`max_length`; twenty steps of builtin:tiny-llama under DDP on two processes, `too_long: drop`, a cache of its own.
Printed for each of two runs: seconds, processor seconds of all processes, most resident memory of a rank."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def write_rows(file: Path, count: int) -> None:
    reviews = [json.loads(line) for line in (ROOT / "data/reviews/train.jsonl").read_text().splitlines()]
    words = sorted({word for review in reviews for word in review["text"].split()})
    chance = random.Random(0)
    with file.open("w") as out:
        for _ in range(count):
            text = " ".join(chance.choices(words, k=max(5, int(chance.lognormvariate(3.2, 0.45)))))
            out.write(json.dumps({"text": text, "label": chance.choice(["positive", "negative"])}) + "\n")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_rows(place / "rows.jsonl", count)
        for start in ("first", "second"):
            config = {
                "stage": "sft",
                "name": start,
                "runs_dir": str(place / "runs"),
                "model": {"path": "builtin:tiny-llama"},
                "data": {
                    "train": str(place / "rows.jsonl"),
                    "prompt": "Review: {text}\nSentiment:",
                    "completion": " {label}",
                    "max_length": 256,
                    "too_long": "drop",
                },
                "train": {"max_steps": 20, "learning_rate": 3e-3, "per_device_train_batch_size": 8},
                "parallel": {"strategy": "ddp", "num_processes": 2},
            }
            (place / "run.yaml").write_text(yaml.safe_dump(config))
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            environment = os.environ | {"XDG_CACHE_HOME": str(place / "cache")}
            command = [sys.executable, "-m", "scaleup.cli", "run", str(place / "run.yaml")]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            last = json.loads((place / "runs" / start / "metrics.jsonl").read_text().splitlines()[-1])
            print(f"{start}: {seconds:.1f} s, {spent:.1f} s of processors, {last['memory_mib']:.0f} MiB a rank")


if __name__ == "__main__":
    main()
