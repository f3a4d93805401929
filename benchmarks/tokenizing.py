"""How long a run of many rows takes until it ends, when it is the first to see them, and when it is not; and what TRL's
SFTTrainer takes to tokenize them.

    .venv/bin/python benchmarks/tokenizing.py [NUM_ROWS] [--trl] [--json OUT]

NUM_ROWS (500,000) reviews of words drawn from `data/reviews` (`make setup`), of which some 40 % are longer than
`max_length`; twenty steps of builtin:tiny-llama under DDP on two processes, `too_long: drop`, a cache of its own.
Printed for each of two runs: seconds, processor seconds of all processes, most resident memory of a rank.

--trl: a process that imports TRL, reads the same file and makes an SFTTrainer of the same model, which tokenizes all
rows in two processes, `max_length: 256`, with a cache of its own; no step is trained."""

from __future__ import annotations

import argparse
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
MODEL, MAX_LENGTH = "builtin:tiny-llama", 256
PROMPT, COMPLETION = "Review: {text}\nSentiment:", " {label}"


def write_rows(file: Path, count: int) -> None:
    reviews = [json.loads(line) for line in (ROOT / "data/reviews/train.jsonl").read_text().splitlines()]
    words = sorted({word for review in reviews for word in review["text"].split()})
    chance = random.Random(0)
    with file.open("w") as out:
        for _ in range(count):
            text = " ".join(chance.choices(words, k=max(5, int(chance.lognormvariate(3.2, 0.45)))))
            out.write(json.dumps({"text": text, "label": chance.choice(["positive", "negative"])}) + "\n")


def timed(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Returns the seconds of a command, and the processor seconds of all its processes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | environment, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor_seconds": spent}


def run_ours(place: Path, name: str) -> dict[str, float]:
    config = {
        "stage": "sft",
        "name": name,
        "runs_dir": str(place / "runs"),
        "model": {"path": MODEL},
        "data": {
            "train": str(place / "rows.jsonl"),
            "prompt": PROMPT,
            "completion": COMPLETION,
            "max_length": MAX_LENGTH,
            "too_long": "drop",
        },
        "train": {"max_steps": 20, "learning_rate": 3e-3, "per_device_train_batch_size": 8},
        "parallel": {"strategy": "ddp", "num_processes": 2},
    }
    (place / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "scaleup.cli", "run", str(place / "run.yaml")]
    found = timed(command, {"XDG_CACHE_HOME": str(place / "cache")})
    last = json.loads((place / "runs" / name / "metrics.jsonl").read_text().splitlines()[-1])
    return found | {"memory_mib": last["memory_mib"]}


def run_theirs(place: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--part", str(place)]
    return timed(command, {"HF_DATASETS_CACHE": str(place / "theirs"), "HF_HUB_OFFLINE": "1"})


def tokenize_theirs(place: Path) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from scaleup.models.sources import materialize

    def texts(row: dict[str, str]) -> dict[str, str]:
        return {"prompt": PROMPT.format(**row), "completion": COMPLETION.format(**row)}

    folder = materialize(MODEL)
    rows = load_dataset("json", data_files=str(place / "rows.jsonl"), split="train")
    rows = rows.map(texts, remove_columns=rows.column_names, num_proc=2)
    settings = SFTConfig(str(place / "out"), max_length=MAX_LENGTH, dataset_num_proc=2, use_cpu=True, bf16=False,
                         report_to="none", disable_tqdm=True)  # fmt: skip
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    SFTTrainer(model, settings, train_dataset=rows, processing_class=tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=500_000, metavar="NUM_ROWS")
    parser.add_argument("--trl", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", type=Path, help="TRL's side, in this process: for this script")
    asked = parser.parse_args()
    if asked.part:
        tokenize_theirs(asked.part)
        return
    with tempfile.TemporaryDirectory() as name:
        place, found = Path(name), {}
        write_rows(place / "rows.jsonl", asked.count)
        if asked.trl:
            found["TRL"] = run_theirs(place)
        for start in ("first", "second"):
            found[start] = run_ours(place, start)
    for name, row in found.items():
        memory = f", {row['memory_mib']:.0f} MiB a rank" if "memory_mib" in row else ""
        print(f"{name}: {row['seconds']:.1f} s, {row['processor_seconds']:.1f} s of processors{memory}")
    if asked.json:
        peers = {"first start": "TRL", "second start": "first"} if asked.trl else {"second start": "first"}
        rows = [{"case": case, "theirs": found[peer], "ours": found[case.split()[0]]} for case, peer in peers.items()]
        asked.json.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
