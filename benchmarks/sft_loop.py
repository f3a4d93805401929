"""What our training loop costs beside a bare one, in fine-tuning as in `sft.py`.

    .venv/bin/python benchmarks/sft_loop.py [reviews,fp32,off]

A run of ours, three times, each in a process of its own: every step is followed, every second time preceded, by a plain
torch one on the same micro-batch, model and optimizer. Printed are the seconds of all steps but the first two, their
ratio, and the median of the pairs' ratios."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sft import WARM_UP, Cell, budget_of, our_config


def train_in_turns(cell: Cell) -> dict[str, float]:
    """A run of ours whose every step is followed by a plain torch one on the same micro-batch, model and optimizer:
    forward, backward, clip, step and nothing else. The seconds of both, each from the end of the other."""
    import torch

    from scaleup.artifacts.run_folder import RunFolder
    from scaleup.config.load import load_leniently
    from scaleup.distributed.engines import base_optimizer
    from scaleup.distributed.heartbeat import Heartbeat
    from scaleup.distributed.signals import StopFlag
    from scaleup.launcher.prepare import prepare_run
    from scaleup.plan.resolve import resolve
    from scaleup.train import supervised
    from scaleup.train.fit import Training, fit
    from scaleup.train.losses import token_loss_sum
    from scaleup.worker import _work

    clock: dict[str, list[float]] = {"ours": [], "bare": []}

    class InTurns:
        def __init__(self, job: Training) -> None:
            self.job, self.began = job, 0.0

        def batches(self, step: int) -> Any:
            if step:
                clock["ours"].append(time.perf_counter() - self.began)
            turns = {step - 1, step} if step % 2 else set()  # who comes second finds the shape's kernels ready
            for turn in sorted(turns):
                self.bare(turn)
            self.began = time.perf_counter()
            return self.job.loader.batches(step)

        def bare(self, step: int) -> None:
            model, optimizer = self.job.model, base_optimizer(self.job.optimizer)
            began = time.perf_counter()
            for batch in self.job.loader.batches(step):
                with torch.autocast("cpu", torch.bfloat16, enabled=cell.bf16):
                    loss = token_loss_sum(model, batch) / batch.num_labels
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            clock["bare"].append(time.perf_counter() - began)

    def fit_in_turns(job: Training) -> Any:
        return fit(dataclasses.replace(job, loader=InTurns(job)))

    supervised.fit = fit_in_turns
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "config.yaml"
        file.write_text(json.dumps(our_config(cell, Path(place), 1, budget_of(cell))))
        config, plan = resolve(load_leniently(file, ()))
        run = RunFolder(Path(plan.run_folder))
        prepare_run(run, config, plan)
        _work(run, "policy", None, StopFlag(), Heartbeat())
    pairs = list(zip(clock["ours"], clock["bare"], strict=False))[WARM_UP:]
    return {"ours": sum(one for one, _ in pairs), "bare": sum(other for _, other in pairs),
            "median": statistics.median(one / other for one, other in pairs)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", nargs="?", default="reviews,fp32,off")
    parser.add_argument("--part", action="store_true", help="one run, as JSON: for this script")
    asked = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if asked.part:
        print(json.dumps(train_in_turns(Cell(*asked.cell.split(",")))))
        return
    for _ in range(3):
        command = [sys.executable, __file__, asked.cell, "--part"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        turns = json.loads(done.stdout.strip().splitlines()[-1])
        ours, bare, median = turns["ours"], turns["bare"], turns["median"]
        print(f"{ours:.1f} seconds in our steps, {bare:.1f} in bare ones: {ours / bare:.3f}, median {median:.3f}")


if __name__ == "__main__":
    main()
