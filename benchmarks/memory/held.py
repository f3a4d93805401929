"""Measure what each rank holds in memory while it trains, and compare it with the plan's formulas.

Run it from the repository's root, after `make setup`; it needs no network and no GPU:

    .venv/bin/python benchmarks/memory/held.py                             every case, a table on stdout
    .venv/bin/python benchmarks/memory/held.py --markdown                  the table as benchmarks/memory/held.md has it
    .venv/bin/python benchmarks/memory/held.py --json OUT ddp,2,no,adamw   these cases only, the rows also as JSON

A case is STRATEGY,PROCESSES,PRECISION,OPTIMIZER and after these, if wanted, offload_optimizer and offload_parameters.
The optimizer is adamw, sgd or momentum (sgd with a momentum of 0.9).

Each case is planned and prepared as `scaleup run` does it. Its ranks are forked from this process, which has imported
everything once; each joins through Runtime, prepares a small Llama of odd shapes as the sft stage does, and trains
three steps of one row of two tokens, so that activations are next to nothing. DeepSpeed's buckets are cut to a million
elements: with 50 million they would be larger than everything else. In the third step, at the end of the backward pass
(under ZeRO-1 and 2 also just before DeepSpeed lets go of its bucket), the storages behind the model's, the engine's and
the optimizer's tensors are added up, each counted once, and every other tensor that the garbage collector knows is
`other`. `peak` is the largest sum of all storages alive after any operation of that step's forward and backward pass;
what it has beyond the parts was there for a moment only: activations, a gradient on its way into a bucket, a copy being
sent. FSDP2's buffers are what its peak has beyond the other parts."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import deepspeed  # noqa: E402, F401 -- before the ranks are forked: it takes seconds
import numpy as np  # noqa: E402
import torch  # noqa: E402
from storages import Peak, Storages, everything, tensors_in  # noqa: E402

from scaleup.artifacts.run_folder import RunFolder  # noqa: E402
from scaleup.config.load import load_mapping  # noqa: E402
from scaleup.config.stages.sft import SFTConfig  # noqa: E402
from scaleup.data.collate import causal_collator  # noqa: E402
from scaleup.data.tokenization import Tokens  # noqa: E402
from scaleup.distributed.engines import base_optimizer  # noqa: E402
from scaleup.distributed.runtime import Runtime  # noqa: E402
from scaleup.launcher.prepare import prepare_run  # noqa: E402
from scaleup.models.load import load_model  # noqa: E402
from scaleup.models.sources import materialize  # noqa: E402
from scaleup.plan.resolve import resolve  # noqa: E402
from scaleup.plan.types import Plan  # noqa: E402
from scaleup.train.losses import token_loss_sum  # noqa: E402
from scaleup.train.optim import build_optimizer  # noqa: E402
from scaleup.train.step import train_step  # noqa: E402
from tests.forked import fork  # noqa: E402

BUCKET = 1_000_000
SHAPE = {"vocab_size": 1003, "hidden_size": 256, "intermediate_size": 701, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
PARTS = ("weights", "gradients", "optimizer", "buffers", "host")
SHARDED = ("zero1", "zero2", "zero3", "fsdp2")
CASES = [
    "single,1,no,adamw",
    "single,1,bf16,momentum",
    "ddp,2,no,adamw",
    "ddp,2,bf16,sgd",
    *(f"{strategy},2,{precision},adamw" for strategy in SHARDED for precision in ("no", "bf16")),
    *(f"{strategy},1,no,adamw" for strategy in SHARDED),
    *(f"{strategy},2,no,momentum" for strategy in SHARDED),
    *(f"{strategy},2,bf16,sgd" for strategy in SHARDED),
    *(f"{strategy},2,{p},adamw,offload_optimizer" for strategy in SHARDED[:3] for p in ("no", "bf16")),
    "zero3,2,bf16,adamw,offload_parameters",
    "zero3,2,bf16,adamw,offload_optimizer,offload_parameters",
]


class Scale:
    """Weighs the parts of a prepared model; which attribute belongs to which part is a fact of DeepSpeed 0.19."""

    def __init__(self, config: SFTConfig, wrapped: Any, optimizer: Any, known: set[int]) -> None:
        self.offloads, self.away = config.parallel.offload_optimizer, config.parallel.offload_parameters
        self.zero = getattr(wrapped, "optimizer", None)
        self.model = getattr(wrapped, "module", wrapped)
        self.base = base_optimizer(optimizer)
        self.known = known

    def parts(self) -> dict[str, int]:
        storages = Storages()
        parameters = list(self.model.parameters())
        masters = [*self.of("single_partition_of_fp32_groups"), *self.of("fp32_partitioned_groups_flat")]
        masters += [parameter for group in self.base.param_groups for parameter in group["params"]]
        whole = storages.add(parameter.data for parameter in parameters)
        shards = storages.add(parameter.ds_tensor for parameter in parameters if hasattr(parameter, "ds_tensor"))
        buffers = storages.add(self.of("ipg_buckets", "temp_grad_buffer_for_gpu_offload"))
        optimizer = storages.add([*masters, *tensors_in(list(self.base.state.values()))])
        staging = storages.add(
            self.of("param_buffer_of_bit16_for_cpu_offload_groups", "temp_grad_buffer_for_cpu_offload")
        )
        sums = [] if self.zero is None else [master.grad for master in masters]
        partition = storages.add(grad for grad in sums if grad is not None)
        partition += storages.add(self.of("averaged_gradients", "grad_partitions_flat_buffer"))
        gradients = storages.add(parameter.grad for parameter in parameters if parameter.grad is not None)
        host = staging + (optimizer + partition if self.offloads else 0) + (shards if self.away else 0)
        return {
            "weights": whole + (0 if self.away else shards),
            "gradients": gradients + (0 if self.offloads else partition),
            "optimizer": 0 if self.offloads else optimizer,
            "buffers": buffers,
            "host": host,
            "whole": whole,
            "other": storages.add([*self.model.buffers(), *everything(self.known)]),
        }

    def of(self, *attributes: str) -> Iterator[torch.Tensor]:
        for attribute in attributes:
            yield from tensors_in(getattr(self.zero, attribute, None))

    def gathered(self) -> int:
        """Weights of other ranks that are here, at the end of the forward pass."""
        return Storages().add(parameter.data for parameter in self.model.parameters())


def rank_main(run: RunFolder, out: Path) -> None:
    config, plan = run.config, Plan.read(run.plan_file)
    assert isinstance(config, SFTConfig)
    runtime = Runtime.start(plan.group("policy"), timeout_seconds=120, run_folder=run.path)
    known = {id(tensor) for tensor in everything(set())}
    model = load_model(config.model, plan.model)
    wrapped, optimizer = runtime.prepare(model, build_optimizer(model, config.train))
    scale, ids = Scale(config, wrapped, optimizer, known), np.arange(3, 5, dtype=np.int32)

    def step() -> None:
        batch = causal_collator(0)([Tokens(ids, ids)])
        train_step(runtime, wrapped, optimizer, [batch], token_loss_sum, 1.0)

    step()
    step()
    found: dict[str, int] = {}
    start = [*everything(known), *(p.grad for p in scale.model.parameters() if p.grad is not None)]
    start += [p.ds_tensor for p in scale.model.parameters() if hasattr(p, "ds_tensor")]
    peak, backward, update = Peak(start), runtime.backward, runtime.update

    def at_the_turn(*arguments: Any) -> None:
        found["gathered"] = scale.gathered()
        backward(*arguments)

    def at_the_end(*arguments: Any) -> Any:
        peak.__exit__(None, None, None)
        weigh()
        return update(*arguments)

    def weigh(*_: Any) -> None:
        """The fullest moment of each part. ZeRO-1 and 2 have no bucket, and ZeRO-1 no whole gradients, at the end."""
        parts = scale.parts()
        found.update({part: max(size, found.get(part, 0)) for part, size in parts.items()})

    if plan.group("policy").strategy == "zero1":
        scale.model.get_input_embeddings().weight.register_post_accumulate_grad_hook(weigh)
    release = getattr(scale.zero, "_release_ipg_buffers", None)

    if release:
        scale.zero._release_ipg_buffers = lambda: (weigh(), release())
    peak.__enter__()
    with patch.object(runtime, "backward", at_the_turn), patch.object(runtime, "update", at_the_end):
        step()
    if plan.group("policy").strategy == "fsdp2":
        found["buffers"] = peak.bytes - sum(found[part] for part in ("weights", "gradients", "optimizer", "other"))
    elif plan.group("policy").zero_stage == 3:
        found["buffers"] += found["gathered"] - found["whole"]
    out.write_text(json.dumps(found | {"peak": peak.bytes}))


def build_model(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS, tie_word_embeddings=False)).save_pretrained(folder / "model")
    for file in Path(materialize("builtin:tiny-llama")).glob("*token*"):
        shutil.copy(file, folder / "model")
    (folder / "rows.jsonl").write_text('{"text": "abc"}\n' * 8, encoding="utf-8")
    return folder / "model"


def measure(case: str, folder: Path) -> list[dict[str, Any]]:
    """A row a part: the formula's bytes, and those of the fullest rank."""
    strategy, processes, precision, optimizer, *offloads = case.split(",")
    train: dict[str, Any] = {"max_steps": 3, "per_device_train_batch_size": 1, "optimizer": optimizer}
    if optimizer == "momentum":
        train |= {"optimizer": "sgd", "momentum": 0.9}
    parallel = {"strategy": strategy, "num_processes": int(processes), "device": "cpu", **dict.fromkeys(offloads, True)}
    raw = {
        "stage": "sft",
        "name": case.replace(",", "-"),
        "runs_dir": str(folder / "runs"),
        "model": {"path": str(folder / "model")},
        "data": {"root": str(folder), "train": "rows.jsonl", "text": "{text}"},
        "train": train,
        "mixed_precision": precision,
        "parallel": parallel,
    }
    config, plan = resolve(load_mapping(raw))
    run = RunFolder(Path(plan.run_folder))
    prepare_run(run, config, plan)
    ranks = fork(run, plan, rank_main)
    held = next(memory for memory in plan.memory if memory.strategy == strategy)
    formula = {part: getattr(held, part) for part in PARTS} | {"other": 0, "peak": held.total + held.host}
    found = {part: max(rank[part] for rank in ranks) for part in formula}
    return [{"case": case, "part": part, "formula": formula[part], "measured": found[part]} for part in formula]


def show(row: dict[str, Any], markdown: bool) -> str:
    strategy, processes, precision, optimizer, *offloads = row["case"].split(",")
    ratio = f"{row['measured'] / row['formula']:.4f}" if row["formula"] else ""
    cells = [strategy, processes, precision, optimizer, " + ".join(o.removeprefix("offload_") for o in offloads)]
    cells += [row["part"], f"{row['formula']:,}", f"{row['measured']:,}", ratio]
    if markdown:
        return f"| {' | '.join(cells)} |"
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, (8, 2, 5, 8, 23, 10, 13, 13, 8), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="What each rank holds in memory, against the plan's formulas.")
    parser.add_argument("cases", nargs="*", default=CASES, help="STRATEGY,PROCESSES,PRECISION,OPTIMIZER[,OFFLOAD...]")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    buckets = [patch(f"scaleup.plan.{module}.BUCKET", BUCKET) for module in ("deepspeed", "memory")]
    with tempfile.TemporaryDirectory() as folder, buckets[0], buckets[1]:
        build_model(Path(folder))
        for case in arguments.cases:
            new = measure(case, Path(folder))
            rows += new
            print(*(show(r, arguments.markdown) for r in new if r["formula"] or r["measured"]), sep="\n", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
