"""Measure what ASHA costs beside a grid: both search the same values of configs/search/reviews.yaml, and how many steps
each trains, how long it takes and what it finds is printed.

Run it from the repository's root, after `make setup`; it needs no network and no GPU:

    .venv/bin/python benchmarks/search.py [KEY=VALUE...]

Each KEY=VALUE is an override of both searches, e.g. num_parallel=2. What has been run already, in runs/, is not run
again, and its time is not known then."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STUDY = Path("configs/search/reviews.yaml")
METHODS = {"grid": ["study=search-reviews-grid", "method=grid", "asha=null"], "asha": ["study=search-reviews-asha"]}


def searched(overrides: list[str]) -> tuple[dict[str, Any], float]:
    """Returns the record of a search, and how many seconds it took."""
    command = [sys.executable, "-m", "scaleup.cli", "search", str(STUDY), *overrides, "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), time.perf_counter() - started


def main() -> None:
    records = {name: searched([*changes, *sys.argv[1:]]) for name, changes in METHODS.items()}
    grid, _ = records["grid"]
    print("| search | trials | of them to the end | steps | share of the grid's | best | eval_loss | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (record, seconds) in records.items():
        trials, (best,) = record["trials"], record["best"]
        steps, all_steps = (sum(trial["steps"] for trial in each["trials"]) for each in (record, grid))
        finished = sum(trial["state"] == "finished" for trial in trials)
        values = ", ".join(f"{value:.3g}" for value in trials[best]["params"].values())
        (loss,) = trials[best]["values"].values()
        share, minutes = f"{steps / all_steps:.2f}", f"{seconds / 60:.1f}"
        print(f"| {name} | {len(trials)} | {finished} | {steps} | {share} | {values} | {loss:.4f} | {minutes} |")
    print("\n| learning rate | grid, at the end | asha, at its last rung or the end |\n|---|---|---|")
    for one, other in zip(grid["trials"], records["asha"][0]["trials"], strict=True):
        rate = one["params"]["train.learning_rate"]
        told = f"step {other['steps']}: {_loss(other)}"
        print(f"| {rate:.3g} | {_loss(one)} | {told} |")


def _loss(trial: dict[str, Any]) -> str:
    if trial["values"].get("eval_loss") is not None:
        return f"{trial['values']['eval_loss']:.4f}"
    rungs = trial["rungs"]
    return f"{rungs[max(rungs, key=int)]:.4f}" if rungs else trial["state"]


if __name__ == "__main__":
    main()
