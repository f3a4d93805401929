"""Mistakes about searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cli import differing
from tests.e2e.mistakes.case import GOOD, Case, bad

RUN = {key: value for key, value in GOOD.items() if key != "name"}
SPACE = {"train.learning_rate": {"float": [1e-5, 1e-2], "log": True}}
COMMAND = ("search", "config.yaml")


def search(
    name: str, *lines: str, run: dict[str, Any] | None = None, command: tuple[str, ...] = COMMAND, **keys: Any
) -> Case:
    """A good search with other `keys`, of the good run with the changes of `run`."""
    raw = {
        "study": "lr",
        "run": {"config": {key: each for key, each in differing(RUN, run or {}).items() if each is not None}},
        "space": SPACE,
        "method": "random",
        "num_trials": 3,
        "objectives": {"eval_loss": "minimize"},
    }
    prepare = keys.pop("prepare", lambda folder: None)
    asks = keys.pop("asks", False)
    return bad(name, *lines, text=json.dumps({**raw, **keys}), command=command, prepare=prepare, asks=asks)


def another(folder: Path) -> None:
    """A search that went over other values, and a trial that is none of this one."""
    (folder / "runs/lr").mkdir(parents=True)
    trial = {"number": 0, "params": {"train.learning_rate": 0.1}, "state": "failed"}
    definition = {"space": {"train.learning_rate": {"float": [0.1, 1]}}}
    record = {"study": "lr", "definition": definition, "objectives": {"eval_loss": "minimize"}, "trials": [trial]}
    (folder / "runs/lr/study.json").write_text(json.dumps(record))


CASES = {
    "searches": [
        search(
            "the file, the run and the space at once",
            "error: methd: unknown key -> did you mean 'method'?",
            "error: space.train.seed: ",
            "error: space.name: is the same for all trials, or the search's own",
            "error: run: train.max_stps: unknown key -> did you mean 'max_steps'?",
            "error: run: parallel.num_nodes: a search starts runs of one node",
            "error: space (train.learning_rate=0): train.learning_rate: ",
            "error: space (adapter.r=0): adapter.r: ",
            "error: objectives.eval_los: is no metric that stage sft logs in this run -> did you mean 'eval_loss'?",
            run={
                "train.max_stps": 3,
                "adapter": {"type": "lora"},
                "parallel.num_nodes": 2,
                "parallel.num_processes": 2,
            },
            methd="tpe",
            space={
                "train.learning_rate": {"choice": [0, 1e-3]},
                "adapter.r": {"choice": [4, 0]},
                "train.seed": {"int": [5, 1]},
                "name": {"choice": ["a", "b"]},
            },
            objectives={"eval_los": "minimize"},
        ),
        search(
            "what asha cannot compare",
            "error: run: train.eval_steps: eval_loss is only measured at the end, and asha compares trials after 4",
            "error: run: train.warmup_steps: ",
            run={"train.warmup_steps": 9},
            method="asha",
            asha={"min_steps": 4},
        ),
        search(
            "a first comparison after the end",
            "error: asha.min_steps: is 4, and a trial has 4 steps -> use fewer",
            run={"train.eval_steps": 2},
            method="asha",
            asha={"min_steps": 4},
        ),
        search(
            "trials of different lengths",
            "error: space: gives trials of 4 to 8 steps, and asha compares them after as many",
            run={"train.eval_steps": 2},
            space={"train.max_steps": {"int": [4, 8]}},
            method="asha",
            asha={"min_steps": 2},
        ),
        search(
            "no rows to evaluate on",
            "error: objectives.eval_loss: is no metric that stage sft logs in this run",
            run={"data.validation": None},
        ),
        search(
            "a stage without steps",
            "error: objectives.eval_loss: is no metric that stage quantize logs",
            run={"stage": "quantize", "data": {}, "train": None, "parallel": {}},
            space={"quantize.method": {"choice": ["int8_dynamic", "float16"]}},
        ),
        search(
            "what the model itself refuses",
            "error: space (adapter.target_modules=['no_proj']): adapter.target_modules: ",
            run={"adapter": {"type": "lora"}},
            space={"adapter.target_modules": {"choice": ["all-linear", ["no_proj"]]}},
            asks=True,
        ),
        search(
            "another search in its folder",
            "error: study (",
            prepare=another,
        ),
        search(
            "a run in a trial's folder",
            "is there already, and no trial of this search -> choose another name",
            prepare=lambda folder: (folder / "runs/lr-001").mkdir(parents=True),
            asks=True,
        ),
        search(
            "trials as jobs of a scheduler, of which each follows from others",
            "error: method: tpe chooses by what other trials came to, and jobs do not wait for one another",
            "error: --max-parallel: is for Slurm",
            "error: run: cluster: is missing",
            method="tpe",
            num_trials=2,
            command=("submit", "config.yaml", "--target", "kubernetes", "--max-parallel", "2"),
        ),
        search(
            "a sweep of a search",
            "error: --sweep: is of one config, not of a search",
            command=("render", "config.yaml", "--sweep", "train.seed=[1,2]"),
        ),
        search(
            "a search where a run is asked for",
            "error: study: is a search, and a run is asked for -> run it with scaleup search FILE",
            command=("plan", "config.yaml"),
        ),
    ],
}
