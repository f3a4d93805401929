"""Measure what a GPU makes of the ladder of options, and TRL's SFTTrainer beside it on the same rows in the same run.

    make gpu                                        on a machine with a GPU; without one, the rehearsal
    .venv/bin/python benchmarks/gpu.py [--minutes 25] [--output FILE] [--rehearse] [--vllm] [--only TEXT]

First tests/gpu, then each row of the ladder on Qwen2.5's shapes of 0.5B and 1.5B parameters with random weights, as
`scaleup run` does it, and rollouts of PPO and GRPO by Transformers and by vLLM: this environment's, or that in
.venv-vllm (`make vllm` makes one for CPUs; for GPUs put one for CUDA there), on a GPU of its own. Every row is bfloat16
on one process, with texts of unlike length, every token a label. A row that fails says how, and a row that this machine
cannot run says it in the words that a user sees. After --minutes nothing more is begun, and what is under way stopped.

tokens/s   real tokens, without padding, over the seconds of the steps after the warm-up
MFU        tokens/s times the FLOPs a token, over the device's bfloat16 peak (PEAKS, with sources): 6 N + 12 L H Q T of
           Kaplan et al. 2020 and Chowdhery et al. 2022 as in scaleup/plan/compute.py, 4 N for frozen weights, T the
           mean length, nothing for recomputation. Not shown on a CPU nor on a device that is not in the list
peak       torch.cuda.max_memory_allocated of the worker; beside it the plan's

The rehearsal runs the same rows by the same commands with tiny shapes on the CPU, two at a time: what it shows is that
they run. TRL compiles whole models, which takes minutes on a CPU: that row of TRL's is left to GPUs. vLLM's rows are
rehearsed with --vllm alone, as it takes a minute to start."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gpu_rows import LADDER, REAL, ROLLOUTS, SHAPES, SMALL, TINY, WIDTHS, Row  # noqa: E402
from gpu_table import PEAKS, Found, device_name, page, vllm_python  # noqa: E402

from scaleup.config.load import load_mapping  # noqa: E402
from scaleup.errors import ScaleupError  # noqa: E402
from scaleup.plan.compute import flops_a_token  # noqa: E402
from scaleup.plan.describe import Describer, describe_models  # noqa: E402
from scaleup.plan.machine import this_machine  # noqa: E402
from scaleup.plan.resolve import Sources, checked_rows, resolve  # noqa: E402
from scaleup.plan.types import Plan  # noqa: E402

PLACE = ROOT / ".cache/benchmarks/gpu"
NOT_BEGUN = -1
PEER = Path(__file__).with_name("gpu_peer.py")


class Bench:
    """The rows, the models and the clock of one call."""

    def __init__(self, rehearse: bool, minutes: float) -> None:
        self.rehearse, self.size = rehearse, SMALL if rehearse else REAL
        self.deadline = time.monotonic() + 60 * minutes
        self.limit = 240.0 if rehearse else 180.0
        self.device = None if rehearse else device_name()
        shutil.rmtree(PLACE, ignore_errors=True)
        PLACE.mkdir(parents=True)
        draw = random.Random(0)
        lengths = [min(self.size.longest - 2, int(draw.lognormvariate(0, 0.8) * self.size.longest / 5) + 8)
                   for _ in range(self.size.rows)]  # fmt: skip
        self.mean_length = mean(lengths) + 1
        self.rows = PLACE / "rows.jsonl"
        texts = ["".join(draw.choices("abcdefgh ", k=length)) for length in lengths]
        self.rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        self.shapes = {"tiny": TINY} if rehearse else SHAPES

    def models(self) -> None:
        for name, shape in self.shapes.items():
            widths = WIDTHS if not self.rehearse else {**WIDTHS, "vocab_size": 512, "max_position_embeddings": 512}
            asked = json.dumps({"shape": {**widths, **shape}, "folder": str(PLACE / name)})
            self.start([sys.executable, str(PEER), "model"], asked, self.limit, check=True)

    def start(self, command: list[str], asked: str, limit: float, check: bool = False) -> tuple[int, str, str]:
        """Run a command within its limit and what is left of the time. Its exit code (-9: it was stopped),
        what it printed, and its errors."""
        left = min(limit, self.deadline - time.monotonic())
        if left < 5:
            return NOT_BEGUN, "", "not reached within the time"
        pipe = subprocess.PIPE
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment, start_new_session=True
        ) as process:
            try:
                printed, errors = process.communicate(asked, timeout=left)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return -9, "", f"stopped after {left:.0f} s"
        if check and process.returncode:
            raise SystemExit(errors)
        return process.returncode, printed, errors

    def config(self, shape: str, row: Row) -> dict[str, Any]:
        """The config of a row of the ladder."""
        size, changes = self.size, dict(row.ours)
        by_rows: dict[str, Any] = {"per_device_train_batch_size": size.batch}
        by_tokens: dict[str, Any] = {"tokens_per_device": round(1.04 * size.batch * self.mean_length)}
        batches = by_tokens if changes.pop("train", None) else by_rows
        batches |= {"optimizer": changes.pop("optimizer", "adamw")}
        return {
            "stage": "sft",
            "name": f"{shape}-{row.name}".replace(" ", "-").replace(":", "").replace(".", "_"),
            "runs_dir": str(PLACE / "runs"),
            "model": {"path": str(PLACE / shape), "attn_implementation": changes.pop("attention", None)},
            "data": {"train": str(self.rows), "text": "{text}", "max_length": size.longest},
            "train": {"max_steps": size.steps, "learning_rate": 1e-5, "async_save": False, **batches},
            "mixed_precision": "bf16",
            "parallel": {"strategy": "single"},
            **changes,
        }

    def run(self, config: dict[str, Any]) -> tuple[str, Path]:
        """`scaleup run`: in words why it did not come to its end (empty: it did), and the run's folder."""
        file, folder = PLACE / f"{config['name']}.yaml", PLACE / "runs" / config["name"]
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        code, _, errors = self.start([sys.executable, "-m", "scaleup.cli", "run", str(file)], "", self.limit)
        if code == 0:
            return "", folder
        if code == 2:
            refused = [line.removeprefix("error: ") for line in errors.splitlines() if line.startswith("error: ")]
            return "; ".join(refused), folder
        if code == NOT_BEGUN:
            return errors, folder
        return f"failed: {(errors.strip().splitlines() or [f'exit code {code}'])[-1][:300]}", folder

    def ours(self, shape: str, row: Row) -> Found:
        said, folder = self.run(self.config(shape, row))
        if said:
            return Found(said)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "tokens_per_second" in line]
        counts = [0, *(line["num_tokens"] for line in steps)]
        tokens = [after - before for before, after in itertools.pairwise(counts)][self.size.warm_up :]
        seconds = sum(
            count / line["tokens_per_second"] for count, line in zip(tokens, steps[-len(tokens) :], strict=True)
        )
        plan, rate = Plan.read(folder / "plan.json"), sum(tokens) / seconds
        return Found(
            tokens_per_second=rate,
            mfu=self.mfu(rate, plan),
            peak_mib=max(line["memory_mib"] for line in steps),
        )

    def planned(self, shape: str, rows: list[Row]) -> dict[str, float | None]:
        """The MiB of the plan's peak by row, one process of the data plane for all; None for what is refused."""
        found: dict[str, float | None] = {}
        with Describer() as describer:
            sources = Sources(checked_rows, partial(describe_models, ask=describer.ask))
            for row in rows:
                found[row.name] = None
                if time.monotonic() > self.deadline:
                    continue
                with suppress(ScaleupError):
                    loaded = load_mapping({**self.config(shape, row), "name": "planned"})
                    peak = resolve(loaded, check_run_folder=False, sources=sources)[1].memory[0].peak
                    found[row.name] = peak and peak / 2**20
        return found

    def mfu(self, rate: float, plan: Plan) -> float | None:
        peak = next((peak for part, (peak, _) in PEAKS.items() if self.device and part in self.device), None)
        return None if peak is None else rate * flops_a_token(plan.model, round(self.mean_length), False) / peak

    def theirs(self, shape: str, rows: list[Row]) -> dict[str, Found]:
        """TRL's figures of these rows, one process for all of them."""
        size = self.size
        cases = {row.name: row.trl for row in rows if row.trl is not None and not (self.rehearse and row.needs)}
        settings = {"max_steps": size.steps, "learning_rate": 1e-5, "max_length": size.longest,
                    "per_device_train_batch_size": size.batch, "warm_up": size.warm_up}  # fmt: skip
        asked = {"model": str(PLACE / shape), "rows": str(self.rows), "settings": settings, "cases": cases}
        found = {row.name: Found("only on a GPU") for row in rows if row.name not in cases}
        if not cases:
            return found
        code, printed, errors = self.start([sys.executable, str(PEER), "trl"], json.dumps(asked), self.limit)
        for line in (line for line in printed.splitlines() if line.startswith('{"name"')):
            told = json.loads(line)
            found[told["name"]] = (
                Found(f"failed: {told['error']}") if "error" in told
                else Found(tokens_per_second=told["tokens"] / told["seconds"], peak_mib=told["peak_mib"])
            )  # fmt: skip
        why = (errors.strip().splitlines() or [""])[-1][:300] if code else "nothing was said"
        why = errors if code == NOT_BEGUN else f"failed: {why}"
        return {row.name: found.get(row.name, Found(why)) for row in rows}

    def tests(self) -> str:
        """The last line of what pytest says of tests/gpu."""
        at_once = [] if self.rehearse else ["--numprocesses=4"]  # tiny runs, most of whose time is starting
        command = [sys.executable, "-m", "pytest", "tests/gpu", "-p", "no:cacheprovider", *at_once]
        _, printed, errors = self.start(command, "", 300.0)
        return (printed.strip().splitlines() or [errors.strip() or "nothing"])[-1]

    def rollout(self, shape: str, name: str, with_vllm: bool) -> Found:
        """Means over the rollouts after the first."""
        stage, engine = name.split(", ")
        python = vllm_python()
        if engine == "vLLM" and python is None:
            return Found("there is no vLLM here: make vllm")
        if engine == "vLLM" and self.rehearse and not with_vllm:
            return Found("rehearsed with --vllm")
        said, folder = self.run(self.policy_config(shape, stage, python if engine == "vLLM" else None))
        if said:
            return Found(said)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steady = [line for line in lines if "time/rollout" in line][1:]
        times = {
            key: mean(line[f"time/{key}"] for line in steady)
            for key in ("generation", "forward", "training", "rollout")
        }
        rate = self.size.responses * self.size.new_tokens / times["generation"]
        return Found(tokens_per_second=rate, peak_mib=max(line["memory_mib"] for line in steady), times=times)

    def policy_config(self, shape: str, stage: str, vllm: str | None) -> dict[str, Any]:
        size, is_ppo = self.size, stage == "PPO"
        score = {"placement": "function", "function": "builtin:length"}
        sizes = {"num_rollouts": 3, "max_new_tokens": size.new_tokens, "response_length_min": size.new_tokens}
        sections: dict[str, Any] = (
            {"ppo": {**sizes, "rollout_batch_size": size.responses, "num_ppo_epochs": 1}, "reward": score}
            if is_ppo
            else {
                "algorithm": {"type": "grpo", "num_generations": 4},
                "rollouts": {**sizes, "batch_size": size.responses, "num_passes": 1},
                "rewards": [{"name": "long", **score}],
            }
        )
        return {
            "stage": "ppo" if is_ppo else "rl",
            "name": f"{stage}-{'vllm' if vllm else 'transformers'}",
            "runs_dir": str(PLACE / "runs"),
            "model": {"path": str(PLACE / shape)},
            "data": {"train": str(self.rows), "prompt": "{text}", "max_length": size.longest},
            "train": {"learning_rate": 1e-6, "per_device_train_batch_size": 4, "async_save": False},
            "mixed_precision": "bf16",
            "parallel": {"strategy": "single"},
            **sections,
            **({"generator": {"engine": "vllm", "python": vllm}} if vllm else {}),
        }


def guarded(kind: str, job: Callable[[], Any]) -> Any:
    """What a job gives, or, where it raises, how it failed: one row is not the end of the others."""
    try:
        return job()
    except Exception as error:
        failed = Found(f"failed: {type(error).__name__}: {error}"[:300])
        return {"planned": {}, "trl": {}, "tests": failed.said}.get(kind, failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--output", type=Path, help="by default benchmarks/gpu.md, of a rehearsal in .cache/benchmarks")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU, also where there is a GPU")
    parser.add_argument("--vllm", action="store_true", help="rehearse vLLM's rows too")
    parser.add_argument("--only", default="", help="rows with this in their name")
    asked = parser.parse_args()
    began = time.monotonic()
    if rehearse := asked.rehearse or this_machine().num_gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    bench = Bench(rehearse, asked.minutes)
    ladder = [row for row in LADDER if asked.only in row.name]
    rollouts = [name for name in ROLLOUTS if asked.only in name]
    bench.models()
    first, *others = bench.shapes
    jobs: dict[tuple[str, str, str], Callable[[], Any]] = {("tests", "", ""): bench.tests}
    jobs |= {("ours", first, row.name): partial(bench.ours, first, row) for row in ladder}
    jobs |= {("planned", shape, ""): partial(bench.planned, shape, ladder) for shape in bench.shapes}
    theirs = partial(bench.theirs, first)
    jobs |= (
        {("trl", first, ""): partial(theirs, ladder)}
        if rehearse
        else {("trl", first, row.name): partial(theirs, [row]) for row in ladder}
    )
    jobs |= {("rollout", first, name): partial(bench.rollout, first, name, asked.vllm) for name in rollouts}
    for shape in others:
        for row in ladder:  # in turns: what the time does not reach, it reaches of neither
            jobs["ours", shape, row.name] = partial(bench.ours, shape, row)
            jobs["trl", shape, row.name] = partial(bench.theirs, shape, [row])
    found: dict[tuple[str, str, str], Any] = {}
    with ThreadPoolExecutor(2 if rehearse else 1) as pool:
        waiting = {key: pool.submit(guarded, key[0], job) for key, job in jobs.items()}
        for key, job in waiting.items():
            found[key] = job.result()
            print(" ".join(part for part in key if part), file=sys.stderr, flush=True)
    peaks = {(key[1], name): peak for key, of in found.items() if key[0] == "planned" for name, peak in of.items()}
    ours = {key[1:]: replace(each, planned_mib=peaks.get(key[1:])) for key, each in found.items() if key[0] == "ours"}
    trl = {(key[1], name): each for key, of in found.items() if key[0] == "trl" for name, each in of.items()}
    drawn = {key[2]: each for key, each in found.items() if key[0] == "rollout"}
    command = " ".join(["benchmarks/gpu.py", *sys.argv[1:]])
    text = page(command, bench.device, time.monotonic() - began, found["tests", "", ""], ours, trl, drawn)
    output = asked.output or (PLACE / "rehearsal.md" if rehearse else ROOT / "benchmarks/gpu.md")
    output.write_text(text, encoding="utf-8")
    print(text)
    return int(any(each.said.startswith("failed") for each in [*ours.values(), *trl.values(), *drawn.values()]))


if __name__ == "__main__":
    sys.exit(main())
