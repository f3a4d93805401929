"""Measure the most memory that each rank has at any moment of a training step, and compare it with the plan's peak.

Run it from the repository's root, after `make setup`; it needs no network and no GPU:

    .venv/bin/python benchmarks/memory/peak.py --markdown                every case, as a table
    .venv/bin/python benchmarks/memory/peak.py --json OUT ddp,2,no,on,64 these cases only, the rows also as JSON

A case is STRATEGY,PROCESSES,PRECISION,CHECKPOINTING,LENGTH[,MODEL[,ADAPTER[,QUANTIZATION]]]: checkpointing is on or
off, a model is llama, gpt2 (with dropout) or t5, an adapter full or lora (on all linear modules), quantization 8bit or
4bit.

Each case is planned by `resolve`, as `scaleup plan` does it, and prepared and stepped as the sft stage does. Its ranks
are forked from this process, which has imported everything once. A micro-batch has four rows of LENGTH tokens, one of
them padded, since a batch without padding needs no mask. DeepSpeed's buckets are cut to 3 million elements, for the
models have 10 million. Two measures, both of the third step from its start to its end, optimizer included, and of the
fullest rank:

storages   the largest sum of all tensors' storages alive after any operation: what the plan predicts
growth     the largest resident size of the process (VmHWM, reset before the step) less that of the bare process:
           the same rank with a model of as many layers, but narrow (a few kilobytes), less the storages of that. So
           what libraries keep for each module, whatever its size, is the bare process's; scratch of oneDNN, gloo and
           DeepSpeed and malloc's holes are growth

Beside them: `accelerate estimate-memory` (its figure for training with Adam, four times the model), and DeepSpeed's
estimate_zero2_ and estimate_zero3_model_states_mem_needs_all_live, where they apply: per GPU, as on a GPU."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from storages import Peak, Sent, everything  # noqa: E402

from scaleup.artifacts.run_folder import RunFolder  # noqa: E402
from scaleup.config.load import load_mapping  # noqa: E402
from scaleup.config.stages.sft import SFTConfig  # noqa: E402
from scaleup.data.dataset import collator_for  # noqa: E402
from scaleup.data.tokenization import Tokens  # noqa: E402
from scaleup.distributed.runtime import Runtime  # noqa: E402
from scaleup.launcher.prepare import prepare_run  # noqa: E402
from scaleup.plan.resolve import resolve  # noqa: E402
from scaleup.plan.types import MemoryPlan, Plan  # noqa: E402
from scaleup.train.losses import token_loss_sum  # noqa: E402
from scaleup.train.model import model_to_train  # noqa: E402
from scaleup.train.optim import build_optimizer  # noqa: E402
from scaleup.train.step import train_step  # noqa: E402
from tests.forked import fork  # noqa: E402

BUCKET = 3_000_000
ROWS = 4
STRATEGIES = (("single", 1), ("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 2), ("fsdp2", 2))
CASES = [
    *(f"{name},{count},no,off,256" for name, count in STRATEGIES),
    *(f"{name},{count},no,on,64" for name, count in STRATEGIES),
    *(f"{name},{count},bf16,off,256" for name, count in STRATEGIES),
    "zero2,1,no,off,256",
    *(f"ddp,2,no,off,256,{model}" for model in ("gpt2", "t5")),
    *(f"{name},2,no,off,256,llama,lora" for name in ("ddp", "zero2", "zero3", "fsdp2")),
    *(f"{place},no,off,256,llama,lora,{bits}" for place in ("single,1", "ddp,2") for bits in ("8bit", "4bit")),
    *(f"{place},no,on,64,llama,lora,{bits}" for place in ("single,1", "ddp,2") for bits in ("8bit", "4bit")),
    "zero2,2,no,off,256,llama,lora,8bit",
    "zero3,2,no,off,256,llama,lora,4bit",
    "zero3,2,no,on,64,llama,lora,4bit",
    "ddp,2,bf16,off,256,llama,lora,8bit",
    "ddp,2,no,off,256,t5,lora,8bit",
]
DEFAULTS = ["llama", "full", None]
ADAPTERS = {"full": None, "lora": {"type": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}}


def rank_main(run: RunFolder, out: Path) -> None:
    give_back_at_once()
    config, plan = run.config, Plan.read(run.plan_file)
    assert isinstance(config, SFTConfig) and plan.batch is not None
    runtime = Runtime.start(plan.group("policy"), timeout_seconds=120, run_folder=run.path)
    known = {id(tensor) for tensor in everything(set())}
    model = model_to_train(config, plan.model, runtime.device)
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    collate = collator_for(plan.model.task, 0, shift, False)
    wrapped, optimizer = runtime.prepare(model, build_optimizer(model, config.train))
    model.train()
    del model
    length, rows, accumulation = config.data.max_length, plan.batch.micro_batch, plan.batch.accumulation

    def step() -> None:
        lengths = [length] * (rows - 1) + [length - 3]
        ids = [np.arange(3, 3 + count, dtype=np.int32) % 900 + 3 for count in lengths]
        batch = collate([Tokens(row, row) for row in ids])
        train_step(runtime, wrapped, optimizer, [batch] * accumulation, token_loss_sum, 1.0)

    step()
    step()
    whole = getattr(wrapped, "module", wrapped)
    start = [*everything(known), *(p.grad for p in whole.parameters() if p.grad is not None)]
    start += [p.ds_tensor for p in whole.parameters() if hasattr(p, "ds_tensor")]
    peak = Peak(start)
    del start
    Path("/proc/self/clear_refs").write_text("5")
    step()
    resident = memory_of("VmHWM")
    sent = Sent()
    with peak, sent:
        step()
    out.write_text(json.dumps({"storages": peak.bytes, "resident": resident, "sent": sent.bytes}))


def give_back_at_once() -> None:
    """malloc keeps nothing of 64 KiB or more: else the resident size tells of what was, not of what is."""
    malloc = ctypes.CDLL(None).mallopt
    for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        assert malloc(parameter, 2**16) == 1


def memory_of(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def build_models(folder: Path) -> None:
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    wide = {"vocab_size": 3003, "hidden_size": 512, "intermediate_size": 1366, "num_hidden_layers": 7}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 512}
    llama = LlamaForCausalLM(LlamaConfig(**wide, **heads, tie_word_embeddings=False))
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=2003, n_embd=384, n_layer=5, n_head=6, n_positions=512, bos_token_id=0, eos_token_id=1)
    )
    shape = {"d_model": 320, "d_kv": 64, "d_ff": 800, "num_layers": 4, "num_heads": 5, "dropout_rate": 0.0}
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=2003, **shape, feed_forward_proj="gated-gelu", decoder_start_token_id=0)
    )
    for name, model in (("llama", llama), ("gpt2", gpt2), ("t5", t5)):
        model.save_pretrained(folder / name)
        type(model)(narrow(model.config)).save_pretrained(folder / f"narrow-{name}")
    (folder / "rows.jsonl").write_text('{"text": "abc", "answer": "d"}\n' * 8, encoding="utf-8")


def narrow(config: Any) -> Any:
    """The architecture with all its layers and modules, its tensors 8 wide and one head."""
    few = dict.fromkeys(("hidden_size", "intermediate_size", "n_embd", "d_model", "d_kv", "d_ff", "head_dim"), 8)
    few |= dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "num_heads"), 1)
    return type(config)(**{**config.to_dict(), **{key: few[key] for key in few if key in config.to_dict()}})


def parts_of(case: str) -> list[Any]:
    given = case.split(",")
    return [*given, *DEFAULTS[len(given) - 5 :]]


def measure(case: str, folder: Path) -> dict[str, Any]:
    """The row of a case. The bare process is the same rank with the narrow model, less that one's tensors."""
    plan, found = train(case, folder, parts_of(case)[5])
    _, bare = train(case, folder, f"narrow-{parts_of(case)[5]}")
    strategy = case.split(",")[0]
    memory = next(memory for memory in plan.memory if memory.strategy == strategy)
    assert memory.peak is not None
    growth = found["resident"] - (bare["resident"] - bare["storages"])
    row = {"case": case, "storages": found["storages"], "growth": growth, "predicted": memory.peak}
    row |= {"error": memory.peak / found["storages"] - 1, "growth_error": memory.peak / growth - 1}
    return row | {"parts": memory.model_dump()} | others(plan, memory)


def train(case: str, folder: Path, model: str) -> tuple[Plan, dict[str, int]]:
    """The plan, and the most of any rank."""
    run, plan = prepared(case, folder, model)
    ranks = fork(run, plan, rank_main)
    return plan, {key: max(rank[key] for rank in ranks) for key in ranks[0]}


def prepared(case: str, folder: Path, model: str) -> tuple[RunFolder, Plan]:
    strategy, processes, precision, checkpointing, length, _, adapter, bits = parts_of(case)
    path, tokenizer = str(folder / model), "builtin:tiny-t5" if model.endswith("t5") else "builtin:tiny-llama"
    form = {"prompt": "{text}", "completion": "{answer}"} if model.endswith("t5") else {"text": "{text}"}
    raw = {
        "stage": "sft",
        "name": f"{model}-{case}".replace(",", "-"),
        "runs_dir": str(folder / "runs"),
        "model": {"path": path, "tokenizer": tokenizer},
        "data": {"root": str(folder), "train": "rows.jsonl", "max_length": int(length), **form},
        "train": {"max_steps": 3, "per_device_train_batch_size": ROWS},
        "adapter": ADAPTERS[adapter],
        "quantization": bits,
        "gradient_checkpointing": checkpointing == "on",
        "mixed_precision": precision,
        "parallel": {"strategy": strategy, "num_processes": int(processes), "device": "cpu"},
    }
    config, plan = resolve(load_mapping(raw))
    run = RunFolder(Path(plan.run_folder))
    prepare_run(run, config, plan)
    return run, plan


def others(plan: Plan, memory: MemoryPlan) -> dict[str, int | None]:
    """What other estimators say of the same run."""
    from accelerate.commands.estimate import estimate_training_usage
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    group, facts = plan.groups[0], plan.model
    precision = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[group.mixed_precision]
    stages = estimate_training_usage(4 * facts.num_parameters, precision)
    ranks = {"num_gpus_per_node": group.num_processes, "num_nodes": 1}
    theirs = None
    if memory.strategy == "zero2":
        theirs = int(estimate_zero2_model_states_mem_needs(facts.num_parameters, **ranks, cpu_offload=False)[1])
    elif memory.strategy == "zero3":
        largest = max(tensors.elements for tensors in facts.tensors)
        options = {**ranks, "cpu_offload": False, "cpu_offload_params": False, "zero_init": True}
        theirs = int(estimate_zero3_model_states_mem_needs(facts.num_parameters, largest, **options)[1])
    return {"accelerate": int(max(stages.values())), "deepspeed": theirs}


def show(row: dict[str, Any], markdown: bool) -> str:
    strategy, processes, precision, checkpointing, length, model, adapter, bits = parts_of(row["case"])
    sizes = [row[key] for key in ("predicted", "storages")]
    cells = [model, adapter, bits or "", strategy, processes, precision, checkpointing, length]
    cells += [f"{size / 2**20:.1f}" for size in sizes]
    cells += [f"{row['error']:+.1%}", f"{row['growth'] / 2**20:.1f}", f"{row['growth_error']:+.1%}"]
    rest = [row[key] for key in ("accelerate", "deepspeed")]
    cells += ["" if size is None else f"{size / 2**20:.1f}" for size in rest]
    if markdown:
        return f"| {' | '.join(cells)} |"
    return "  ".join(cell.rjust(7) for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description="The most memory of a rank, against the plan's prediction.")
    parser.add_argument(
        "cases", nargs="*", default=CASES, help="STRATEGY,PROCESSES,PRECISION,CHECKPOINTING,LENGTH[,MODEL]"
    )
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
        for case in arguments.cases:
            rows.append(measure(case, Path(folder)))
            print(show(rows[-1], arguments.markdown), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for key in ("error", "growth_error"):
        errors = [abs(row[key]) for row in rows]
        print(f"{len(errors)} cases, {key}: median {statistics.median(errors):.1%}, worst {max(errors):.1%}")


if __name__ == "__main__":
    main()
