"""Measure what ASHA costs beside a grid: both search the same values, and how many steps each trains, how long it takes
and what it finds is printed.

Run it from the repository's root, after `make setup`; it needs no network and no GPU:

    .venv/bin/python benchmarks/search.py configs/search/tiny.yaml [KEY=VALUE...]

The search is one by ASHA with `sampler: grid`; each KEY=VALUE is an override of both, e.g. num_parallel=2. What has
been run already, in runs/, is not run again, and its time is not known then."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

METHODS = {"grid": ["method=grid", "asha=null"], "asha": []}


def searched(file: str, overrides: list[str]) -> tuple[dict[str, Any], float]:
    """Returns the record of a search, and how many seconds it took."""
    command = [sys.executable, "-m", "scaleup.cli", "search", file, *overrides, "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout), time.perf_counter() - started


def main() -> None:
    file, overrides = sys.argv[1], sys.argv[2:]
    records = {
        name: searched(file, [*overrides, *changes, f"study=search-{Path(file).stem}-{name}"])
        for name, changes in METHODS.items()
    }
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
    print(f"\n| {', '.join(grid['trials'][0]['params'])} | grid, at the end | asha |\n|---|---|---|")
    for one, other in zip(grid["trials"], records["asha"][0]["trials"], strict=True):
        values = ", ".join(f"{value:.3g}" for value in one["params"].values())
        print(f"| {values} | {_loss(one)} | {_loss(other)} at step {other['steps']} |")


def _loss(trial: dict[str, Any]) -> str:
    if trial["values"].get("eval_loss") is not None:
        return f"{trial['values']['eval_loss']:.4f}"
    rungs = trial["rungs"]
    return f"{rungs[max(rungs, key=int)]:.4f}" if rungs else trial["state"]


if __name__ == "__main__":
    main()
