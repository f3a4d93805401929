"""Measure how long the responses of a PPO rollout take under each strategy, with one or several versions of this
project.

Run it from the repository's root, after `make setup`; it needs no network and no GPU:

    .venv/bin/python benchmarks/rollouts.py [--repeat 2] [--rollouts 2] [--cases alike-ddp,...] before=../before after=.

Each NAME=FOLDER is a checkout with a `.venv` of its own (`git worktree add ../before REVISION`). They take turns, so
that what else the machine does hits all alike. The policy has SmolLM2-135M's shape and random parameters in float32,
with its reference, prepared for training on two processes; after two tokens unmeasured come the rollouts (--rollouts),
the gathering of weights included. A case is LENGTHS-STRATEGY:

    alike-...       16 prompts, 24 tokens each
    different-...   64 prompts, limits drawn evenly between 2 and 96 tokens
    skewed-...      64 prompts, one token in eight ends a response: 8 tokens on the mean, some 40 the longest

Shown is the mean of seconds over rollouts and repetitions, least and most in brackets."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

SHAPE = {"vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
HEADS = {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 512}
LENGTHS = {"alike": (16, None, 24), "different": (64, 2, 96), "skewed": (64, 2, 96)}
CASES = ["alike-ddp", "alike-zero2", "alike-zero3", "alike-fsdp2", "different-ddp", "skewed-ddp"]


def rollouts(runtime: Any, lengths: str, count: int) -> list[float]:
    """Return the seconds of each rollout on this rank, of which the longest counts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from scaleup.models.beside import unwrap
    from scaleup.models.rollout import Sampling, respond
    from scaleup.rl.policy import Policy

    torch.manual_seed(0)
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    policy = Policy(LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS, **ends, tie_word_embeddings=True)), 1.0)
    model = runtime.prepare(policy, torch.optim.SGD(policy.parameters(), lr=0.0))[0]
    model.eval()
    size, least, most = LENGTHS[lengths]
    rows = range(runtime.rank, size, runtime.world)
    prompts = [[5] * (4 + 3 * (row % 9)) for row in rows]
    sampling = Sampling(most, least, 1.0, (2,), 0)
    if (
        lengths == "skewed"
    ):  # nearly every token ends a response, but for those of the longest, which draws none of them
        sampling = replace(sampling, min_limit=None, eos_ids=tuple(range(2, SHAPE["vocab_size"], 8)))
    seconds = []
    for number in range(1 + count):
        runtime.barrier()
        started = time.perf_counter()
        generating = getattr(runtime, "generating", None)  # not there before
        whole = generating(model, unwrap(model).policy) if generating else nullcontext(runtime.gathers_weights)
        with whole as together:
            length = sampling if number else replace(sampling, max_new_tokens=2, min_limit=None)
            respond(model, prompts, [(number, row) for row in rows], length, runtime.device, together)
        runtime.barrier()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def group_of(strategy: str) -> Any:
    from scaleup.config.load import load_mapping
    from scaleup.plan.deepspeed import deepspeed_settings
    from scaleup.plan.types import GroupPlan
    from tests.distributed.worlds import group_plan

    settings: dict[str, Any] = {"strategy": strategy}
    if strategy.startswith("zero"):
        stage = int(strategy[-1])
        raw: dict[str, Any] = {"stage": "sft", "name": "x", "model": {"path": "builtin:tiny-llama"}}
        config = load_mapping({**raw, "data": {"train": "x", "text": "{text}"}, "train": {"max_steps": 1}}).config
        settings |= {"distributed_type": "DEEPSPEED", "engine": "DeepSpeedEngine", "zero_stage": stage}
        settings["deepspeed"] = deepspeed_settings(config, stage)
    if strategy == "fsdp2":
        settings |= {"distributed_type": "FSDP", "engine": "FSDPModule"}
    if strategy in ("zero3", "fsdp2") and "gathers_for_generation" in GroupPlan.model_fields:
        settings["gathers_for_generation"] = True
    return group_plan("rollouts", 2).model_copy(update=settings)


def measure(case: str, count: int) -> None:
    """Print the seconds of a case's rollouts with the version whose folder this process runs in."""
    from tests.distributed.worlds import World

    lengths, strategy = case.split("-")
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), case, 2, lambda runtime: rollouts(runtime, lengths, count), group_of(strategy))
        try:
            print(json.dumps(max(world.results(900))))
        finally:
            world.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--rollouts", type=int, default=2)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("trees", nargs="*", metavar="NAME=FOLDER")
    arguments = parser.parse_args()
    if arguments.measure:
        sys.path.insert(0, str(Path.cwd()))
        measure(arguments.measure, arguments.rollouts)
        return
    trees = {name: Path(folder).resolve() for name, _, folder in (each.partition("=") for each in arguments.trees)}
    cases, found = arguments.cases.split(","), defaultdict[tuple[str, str], list[float]](list)
    for _ in range(arguments.repeat):
        for case in cases:
            for name, tree in trees.items():
                command = [str(tree / ".venv/bin/python"), str(Path(__file__).resolve()), "--measure", case]
                command += ["--rollouts", str(arguments.rollouts)]
                done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{case} with {name} ended with {done.returncode}\n{done.stderr[-4000:]}")
                times = json.loads(done.stdout.splitlines()[-1])
                found[case, name] += times
                print(case, name, *(f"{each:.2f}" for each in times), flush=True)
    print(f"\n| case | {' | '.join(trees)} |\n|---|{'---|' * len(trees)}")
    for case in cases:
        cells = [found[case, name] for name in trees]
        shown = [f"{mean(times):.2f} ({min(times):.2f} to {max(times):.2f})" for times in cells]
        print(f"| {case} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
