"""Ask `scaleup plan --fit` for configs that fit, run each, and compare its planned peak and traffic with the run's.

Run it from the repository's root, after `make setup`; it needs no network and no GPU:

    .venv/bin/python benchmarks/memory/fit.py --markdown            every question, as a table
    .venv/bin/python benchmarks/memory/fit.py --json OUT ddp-85     this question only, the rows also as JSON

A question is a config of the Llama of peak.py and a memory in which it does not fit: its name is the strategy and the
percentage of the config's own peak that a rank has. Every proposal is prepared and stepped as the sft stage does, its
ranks forked from this process; how the most of all storages is found stands in peak.py. `sent` are the bytes that a
rank sends in the step's collectives, if each were done in a ring."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import torch  # noqa: E402
import yaml  # noqa: E402
from peak import BUCKET, build_models, rank_main  # noqa: E402

from scaleup.artifacts.run_folder import RunFolder  # noqa: E402
from scaleup.launcher.prepare import prepare_run  # noqa: E402
from scaleup.plan.fit import Fit, propose  # noqa: E402
from scaleup.plan.machine import Machine  # noqa: E402
from scaleup.plan.proposals import Proposal  # noqa: E402
from scaleup.plan.resolve import resolve  # noqa: E402
from scaleup.plan.search import Asked  # noqa: E402
from tests.forked import fork  # noqa: E402

PLENTY = 2**40


@dataclass(frozen=True)
class Case:
    strategy: str
    processes: int
    precision: str
    percentage: int
    """The memory of a rank, of the config's own peak."""

    @property
    def name(self) -> str:
        return f"{self.strategy}-{self.percentage}"


CASES = [Case("ddp", 2, "no", 85), Case("ddp", 2, "bf16", 60), Case("fsdp2", 2, "no", 75), Case("zero2", 2, "no", 55)]


def config_of(case: Case, folder: Path) -> Path:
    raw = {
        "stage": "sft",
        "name": case.name,
        "runs_dir": str(folder / "runs"),
        "model": {"path": str(folder / "llama"), "tokenizer": "builtin:tiny-llama"},
        "data": {"root": str(folder), "train": "rows.jsonl", "max_length": 128, "text": "{text}"},
        "train": {"max_steps": 3, "per_device_train_batch_size": 8},
        "mixed_precision": case.precision,
        "parallel": {"strategy": case.strategy, "num_processes": case.processes, "device": "cpu"},
    }
    file = folder / f"{case.name}.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return file


def asked(case: Case, folder: Path) -> tuple[Asked, Fit]:
    """The question, and its answer on a machine that has too little."""
    question = Asked(config_of(case, folder), [], [])
    _, plan = resolve(question.load(), Machine(2, 0, memory=PLENTY), check_run_folder=False)
    peak = next(row.peak for row in plan.memory if row.strategy == case.strategy)
    assert peak is not None
    memory = peak * case.percentage // 100 * case.processes
    return question, propose(question, Machine(2, 0, memory=memory))


def measure(case: Case, question: Asked, fit: Fit, proposal: Proposal, number: int) -> dict[str, Any]:
    """A row: the proposal beside the fullest of its ranks."""
    machine = Machine(2, 0, memory=PLENTY)
    config, plan = resolve(question.load([*proposal.overrides, f"name={case.name}-{number}"]), machine)
    run = RunFolder(Path(plan.run_folder))
    prepare_run(run, config, plan)
    ranks = fork(run, plan, rank_main)
    found = {key: max(rank[key] for rank in ranks) for key in ranks[0]}
    return {
        "case": case.name,
        "device_memory": fit.device_memory,
        "overrides": list(proposal.overrides),
        "planned": proposal.needs,
        "storages": found["storages"],
        "error": proposal.needs / found["storages"] - 1,
        "planned_sent": proposal.communication,
        "sent": found["sent"],
    }


def show(row: dict[str, Any], markdown: bool) -> str:
    sizes = [f"{row[key] / 2**20:.1f}" for key in ("device_memory", "planned", "storages")]
    sent = [f"{row[key] / 2**20:.1f}" for key in ("planned_sent", "sent")]
    cells = [row["case"], *sizes, f"{row['error']:+.1%}", *sent, " ".join(row["overrides"])]
    return f"| {' | '.join(cells)} |" if markdown else "  ".join(cell.rjust(7) for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="What `scaleup plan --fit` proposes, against runs of it.")
    parser.add_argument("cases", nargs="*", default=[case.name for case in CASES])
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    buckets = [patch(f"scaleup.plan.{module}.BUCKET", BUCKET) for module in ("deepspeed", "memory")]
    with tempfile.TemporaryDirectory() as folder, buckets[0], buckets[1]:
        if not (child := os.fork()):  # what this process lets go of, its ranks would find and use
            build_models(Path(folder))
            os._exit(0)
        os.waitpid(child, 0)
        for case in (case for case in CASES if case.name in arguments.cases):
            question, fit = asked(case, Path(folder))
            for number, proposal in enumerate(fit.proposals):
                rows.append(measure(case, question, fit, proposal, number))
                print(show(rows[-1], arguments.markdown), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(f"{len(rows)} proposals, worst error {max(abs(row['error']) for row in rows):.1%}")


if __name__ == "__main__":
    main()
