"""One training of a reward model in several ways, each as the stage does it, in ranks forked from this process.

    python -m tests.invariants.reward_runs FOLDER

FOLDER gets the runs `one` (a process), `two` (two processes), `killed` (in step 5 of two processes, then gone on from
the checkpoint of step 4), `sharded` (ZeRO-3) and `lora` (of one process, killed likewise)."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

from torch.optim.optimizer import register_optimizer_step_post_hook

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.load import load_mapping
from scaleup.distributed.runtime import Runtime
from scaleup.launcher.prepare import prepare_run
from scaleup.plan.resolve import resolve
from scaleup.plan.types import Plan
from scaleup.stages import reward
from tests.cli import differing
from tests.forked import be_ready_to_fork, fork

KILLED_IN = 5
CONFIG: dict[str, Any] = {
    "stage": "reward",
    "model": {"path": "builtin:tiny-llama"},
    "data": {
        "train": "rows.jsonl",
        "validation": "held.jsonl",
        "prompt": "{ask}",
        "completions": "answers",
        "ratings": "stars",
        "margin": "stars",
        "max_length": 40,
    },
    "reward": {"center_coefficient": 0.05},
    "train": {
        "num_train_epochs": 1,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "global_batch_size": 4,
        "per_device_train_batch_size": 2,
        "save_steps": 4,
        "eval_steps": 4,
    },
}
TWO = {"parallel": {"strategy": "ddp", "num_processes": 2}}
RUNS: dict[str, dict[str, Any]] = {
    "one": {},
    "two": TWO,
    "killed": TWO,
    "sharded": {"parallel": {"strategy": "zero3", "num_processes": 2}},
    "lora": {"adapter": {"type": "lora", "r": 2}},
    "lora-killed": {"adapter": {"type": "lora", "r": 2}},
}


def rows(file: Path, count: int) -> None:
    """Rankings of two or three answers, some of them tied."""
    chance = random.Random(file.name)
    made = []
    for _ in range(count):
        answers = ["".join(chance.choices("abcx ", k=chance.randint(1, 14))) + "." for _ in range(chance.randint(2, 3))]
        stars = [chance.randint(0, 2) for _ in answers]
        made.append({"ask": "q" * chance.randint(1, 9) + "?", "answers": answers, "stars": stars})
    file.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


def rank_main(run: RunFolder, out: Path, dies: bool) -> None:
    steps = 0

    def die(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == KILLED_IN:
            os.kill(os.getpid(), signal.SIGKILL)

    if dies:
        register_optimizer_step_post_hook(die)
    plan = Plan.read(run.plan_file)
    runtime = Runtime.start(plan.group("policy"), timeout_seconds=60, run_folder=run.path)
    reward.run(run.config, plan, runtime, run)  # type: ignore[arg-type]
    out.write_text("{}")


def main() -> None:
    folder = Path(sys.argv[1])
    os.chdir(folder)
    rows(folder / "rows.jsonl", 24)
    rows(folder / "held.jsonl", 7)
    be_ready_to_fork()
    for name, changes in RUNS.items():
        given = differing(CONFIG, changes)
        config, plan = resolve(load_mapping({**given, "name": name, "runs_dir": str(folder / "runs")}), peaks=False)
        run = RunFolder(Path(plan.run_folder))
        prepare_run(run, config, plan)
        if name.endswith("killed"):
            with suppress(RuntimeError):
                fork(run, plan, partial(rank_main, dies=True))
            assert not run.manifest_file.exists(), "it was to be killed"
        fork(run, plan, partial(rank_main, dies=False))


if __name__ == "__main__":
    main()
