"""How long a checkpoint keeps the training waiting, written in the background and not, by turns in one process.

    python benchmarks/saving.py [FOLDER] [--rounds 5] [--json OUT]

A Llama of 134 million parameters on one CPU process; AdamW has taken a step, so a checkpoint has weights and both
moments: 1.6 GB. Between two saves the process does what a training would: matrix products, for as long as a save
takes. FOLDER is on the disk that is measured."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scaleup.artifacts.run_folder import RunFolder
from scaleup.artifacts.train_state import TrainState
from scaleup.config.schema import OptimizationConfig
from scaleup.train.checkpoint import Checkpointer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        waits = measure(Path(place), asked.rounds)
    for kind, seconds in waits.items():
        print(f"async_save {kind}: waits {median(seconds):.2f} s (median; {min(seconds):.2f} to {max(seconds):.2f})")
    if asked.json:
        sides = {name: {"seconds": median(waits[kind])} for name, kind in (("theirs", False), ("ours", True))}
        asked.json.write_text(json.dumps([{"case": "1.5 GiB", **sides}]), encoding="utf-8")


def measure(place: Path, rounds: int) -> dict[bool, list[float]]:
    """Returns the seconds that each save kept its training waiting, without async_save and with it."""
    from tests.unit.data import tiny

    runtime = tiny.single_process(place)
    config = LlamaConfig(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=16, num_attention_heads=12, vocab_size=16000
    )
    model = LlamaForCausalLM(config)
    model, optimizer = runtime.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-6))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer.optimizer, 1.0)
    both = {
        kind: Checkpointer(
            runtime, RunFolder(place / str(kind)), model, optimizer, schedule, OptimizationConfig(async_save=kind)
        )
        for kind in (False, True)
    }
    waits: dict[bool, list[float]] = {kind: [] for kind in both}
    work = torch.randn(1500, 1500)
    for step in range(1, rounds + 1):
        for kind, checkpointer in both.items():
            started = time.perf_counter()
            checkpointer.save(TrainState(step=step))
            waits[kind].append(time.perf_counter() - started)
            until = time.perf_counter() + 2 * max(waits[False])
            while time.perf_counter() < until:
                work = torch.tanh(work @ work)
            started = time.perf_counter()
            checkpointer.wait()
            waits[kind][-1] += time.perf_counter() - started
    whole = list((place / "True/checkpoints").glob("step-*"))
    size = sum(file.stat().st_size for folder in whole for file in folder.iterdir()) / len(whole)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, {size / 2**30:.2f} GiB a checkpoint, {rounds} rounds")
    return waits


if __name__ == "__main__":
    main()
