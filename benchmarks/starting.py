"""How long it takes from the command to the end of the first optimizer step: scaleup against TRL's SFTTrainer.

    .venv/bin/python benchmarks/starting.py [--json OUT] [CELL...]

A cell is one of `sft.py`, whose two sides run here with the rows of one step: `scaleup run` with all that it checks,
plans and launches, until its log has the step; and a Python process that imports TRL, tokenizes the rows, loads the
model and trains, until its step has ended."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sft import Cell, apart, budget_of, our_config


def start_ours(cell: Cell) -> float:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = our_config(cell, folder, 1, budget_of(cell))
        config["train"] |= {"max_steps": 1, "num_train_epochs": None}
        (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        began = time.time()
        command = [sys.executable, "-m", "scaleup.cli", "run", str(folder / "config.yaml")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return (folder / "runs/bench/metrics.jsonl").stat().st_mtime - began


def start_theirs(cell: Cell) -> float:
    began = time.time()
    return apart("trl", cell)["ended"] - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", default=["reviews,fp32,off,16"])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    rows = []
    print("| cell | TRL s | scaleup s | ratio |", "|---|---|---|---|", sep="\n")
    for text in asked.cells:
        cell = Cell(*text.split(","))
        theirs, ours = start_theirs(cell), start_ours(cell)
        print(f"| {text} | {theirs:.1f} | {ours:.1f} | **{theirs / ours:.2f}** |", flush=True)
        rows.append({"case": text, "theirs": {"seconds": theirs}, "ours": {"seconds": ours}})
    if asked.json:
        asked.json.write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
