"""Measure the resident memory of each rank from its start to its first step, with weights read one after another into
its shards, and with a whole model loaded first (as it was before).

Run it from the repository's root, after `make setup`; it needs no network and no GPU:

    .venv/bin/python benchmarks/loading.py                        every case both ways, a table on stdout
    .venv/bin/python benchmarks/loading.py --now --json OUT zero3,2,no,full    these cases, not as it was before

A case is STRATEGY,PROCESSES,PRECISION,KIND. KIND is full (all of the model is trained, by SGD), lora (an adapter on a
frozen base, where zero3 and fsdp2 shard both), 4bit (the same, the base quantized), or frozen (a model that is only
asked, as a reward group's).

The model is a Llama of 268 million random parameters: 1,072 MB in float32, from files of 536 MB in bf16; its largest
parameter has 131 MB in float32. Ranks are forked from this process, which has imported everything once. Each joins
through Runtime; what it has then is the bare process. The kernel's mark of the most resident memory is reset there and
read after `prepare`, which is the start of the first step; pages of mapped files count. `shards` are what the plan says
that a rank holds: weights, gradients, optimizer and (of zero1 to zero3) the bucket, which is cut to a million elements.
The law is: peak <= shards + twice the largest parameter + 300 MB. Before the engine prepares the model, which is then
adapted and looked at, nothing of it may stay: twice the largest parameter and 50 MB at any time. Then a
model that is trained as a whole is written: rank 0 reads one parameter after another, which all ranks gather, and takes
no more than two and 100 MB for it."""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from scaleup.artifacts.run_folder import RunFolder  # noqa: E402
from scaleup.distributed.runtime import Runtime  # noqa: E402
from scaleup.models.adapted import load_finished  # noqa: E402
from scaleup.models.saved import save_model, saved_buffers  # noqa: E402
from scaleup.models.sources import materialize  # noqa: E402
from scaleup.plan.types import Plan  # noqa: E402
from scaleup.train.model import model_to_train  # noqa: E402
from scaleup.train.optim import build_optimizer  # noqa: E402
from tests.forked import be_ready_to_fork, fork, in_children, prepared  # noqa: E402

SHAPE = {"vocab_size": 32_000, "hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 16}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 512}
MB, SLACK, BUCKET = 10**6, 300 * 10**6, 1_000_000
CASES = [
    *(f"{strategy},{count},no,full" for strategy in ("zero3", "fsdp2", "ddp") for count in (2, 4)),
    *(f"{strategy},4,bf16,full" for strategy in ("zero3", "fsdp2")),
    *(f"{strategy},4,no,{kind}" for kind in ("lora", "frozen") for strategy in ("zero3", "fsdp2")),
    *(f"{strategy},2,no,4bit" for strategy in ("ddp", "zero3")),
]


def build_model(folder: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS, tie_word_embeddings=False))
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    for file in Path(materialize("builtin:tiny-llama")).glob("*token*"):
        shutil.copy(file, folder / "model")
    (folder / "rows.jsonl").write_text('{"text": "abc"}\n' * 8, encoding="utf-8")


def rank_main(kind: str, is_before: bool, run: RunFolder, out: Path) -> None:
    config: Any = run.config
    plan = Plan.read(run.plan_file)
    runtime = Runtime.start(plan.group("policy"), timeout_seconds=300, run_folder=run.path)
    way = "quantized_when_read" if kind == "4bit" else "deferred_files"
    whole = patch(f"scaleup.models.load.{way}", nullcontext) if is_before else nullcontext()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    bare, started = resident("VmRSS"), time.perf_counter()
    with whole:
        if kind == "frozen":
            model = load_finished(config.model, plan.model, None, config.mixed_precision, runtime.device, True)
            loaded = resident("VmHWM") - bare
            model = runtime.prepare(model.requires_grad_(False))
        else:
            model = model_to_train(config, plan.model, runtime.device)
            loaded = resident("VmHWM") - bare
            model, _ = runtime.prepare(model, build_optimizer(model, config.train))
    seconds, peak = time.perf_counter() - started, resident("VmHWM") - bare
    written = writing(runtime, model, run) if kind == "full" else None
    out.write_text(json.dumps({"bare": bare, "loaded": loaded, "peak": peak, "seconds": seconds, "writing": written}))


def writing(runtime: Runtime, model: Any, run: RunFolder) -> int:
    """Returns how much more a rank has, at most, while the model is written."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, whole = resident("VmRSS"), runtime.accelerator.unwrap_model(model)
    folder, buffers = run.path / "written", saved_buffers(whole)
    folder.mkdir(exist_ok=True)
    runtime.hand_out(model, lambda weights: save_model(whole, folder, {**weights, **buffers}, "5GB"))
    runtime.barrier()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """Returns what the kernel says of this process, in bytes: what it has, or the most that it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measure(case: str, folder: Path, is_before: bool) -> dict[str, Any]:
    strategy, processes, precision, kind = case.split(",")
    raw = {
        "stage": "sft",
        "name": f"{case.replace(',', '-')}-{is_before}",
        "runs_dir": str(folder / "runs"),
        "model": {"path": str(folder / "model")},
        "data": {"root": str(folder), "train": "rows.jsonl", "text": "{text}"},
        "train": {"max_steps": 1, "per_device_train_batch_size": 1, "optimizer": "sgd", "momentum": 0},
        "mixed_precision": precision,
        "parallel": {"strategy": strategy, "num_processes": int(processes), "device": "cpu"},
        **({"adapter": {"type": "lora"}} if kind in ("lora", "4bit") else {}),
        **({"quantization": "4bit"} if kind == "4bit" else {}),
    }
    run, plan = prepared(raw)
    ranks = fork(run, plan, partial(rank_main, kind, is_before))
    held = next(memory for memory in plan.memory if memory.strategy == strategy)
    width = 4 if precision == "no" or strategy in ("fsdp2", "ddp") else 2
    shards = held.weights + (0 if kind == "frozen" else held.gradients + held.optimizer)
    shards += width * BUCKET if strategy == "zero3" else 0
    largest = 4 * max(tensors.elements for tensors in plan.model.tensors)
    peak, seconds = (max(rank[key] for rank in ranks) for key in ("peak", "seconds"))
    row = {"case": case, "before": is_before, "shards": shards, "law": shards + 2 * largest + SLACK, "peak": peak}
    row |= {"model": 4 * plan.model.num_parameters, "loaded_law": 2 * largest + SLACK // 6}
    if kind == "full":
        row |= {"writing": max(rank["writing"] for rank in ranks), "writing_law": 2 * largest + SLACK // 3}
    return row | {key: max(rank[key] for rank in ranks) for key in ("bare", "loaded")} | {"seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description="What a rank has in memory while its model is loaded.")
    parser.add_argument("cases", nargs="*", help="STRATEGY,PROCESSES,PRECISION,KIND")
    parser.add_argument("--now", action="store_true", help="not as it was before")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    be_ready_to_fork()
    rows: list[dict[str, Any]] = []
    ways = (False,) if arguments.now else (True, False)
    buckets = [patch(f"scaleup.plan.{module}.BUCKET", BUCKET) for module in ("deepspeed", "memory")]
    with tempfile.TemporaryDirectory() as folder, buckets[0], buckets[1]:
        dict(in_children({"model": partial(build_model, Path(folder))}))  # what it frees is not in the ranks
        print("| case | shards MB | law MB | before it is prepared MB | peak MB | while writing MB | s |")
        print("|---|---|---|---|---|---|---|")
        for case in arguments.cases or CASES:
            whole = {}
            for is_before in ways:
                row = measure(case, Path(folder), is_before)
                if is_before:
                    whole = {"whole": row}
                else:
                    rows.append(row | whole)
                sizes = " | ".join(
                    f"{row.get(key, 0) / MB:,.0f}" for key in ("shards", "law", "loaded", "peak", "writing")
                )
                name = f"{case}{' before' if is_before else ''}"
                print(f"| {name} | {sizes} | {row['seconds']:.1f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
