"""What an engine of another library does with our settings, and workers that come up with another one than planned."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scaleup.distributed.deepspeed_ops import ops_folder
from tests.cli import differing, largest_loss_difference, largest_weight_difference, losses, metrics
from tests.distributed.test_runtime import CONFIG, launch, prepare
from tests.forked_runs import train

NO_CLIPPING = {"train.max_grad_norm": 0}
RUNS: dict[str, dict[str, Any]] = {
    "ddp-unclipped": NO_CLIPPING,
    "zero2-unclipped": {"parallel.strategy": "zero2", **NO_CLIPPING},
    "zero2-clipped": {"parallel.strategy": "zero2", "train.max_grad_norm": 1.0},
}
ADAMW = {"train.optimizer": "adamw", "train.learning_rate": 1e-3}
OFFLOADED = {
    "zero2-adamw": {"parallel.strategy": "zero2", **ADAMW},
    "zero2-offloaded": {"parallel.strategy": "zero2", "parallel.offload_optimizer": True, **ADAMW},
}

SHARDED = """
import json, sys
from pathlib import Path
from unittest.mock import patch

import torch

from scaleup.artifacts.run_folder import RunFolder
from scaleup.distributed.engines import FSDP2Engine
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.models.load import load_model
from scaleup.plan.types import Plan

run, out = RunFolder(Path(sys.argv[1])), Path(sys.argv[2])
plan = Plan.read(run.plan_file)
runtime = Runtime.start(plan.group("policy"), timeout_seconds=60, run_folder=run.path)
model = load_model(run.config.model, plan.model)
whole = sum(parameter.numel() for parameter in model.parameters())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
refusal = None
with patch.object(FSDP2Engine, "prepare", lambda self, accelerator, *parts: parts):
    try:
        runtime.prepare(model, optimizer)
    except ScaleupError as error:
        refusal = str(error)
sharded, _ = runtime.prepare(model, optimizer)
share = sum(parameter.to_local().numel() for parameter in sharded.parameters())
results = {"refusal": refusal, "share": share / whole, "mesh": list(next(sharded.parameters()).device_mesh.shape)}
(out / f"sharded{runtime.rank}.json").write_text(json.dumps(results))
runtime.accelerator.end_training()
"""
"""A worker under FSDP2: first a library that leaves the model whole, then the real one."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    chance = random.Random(0)
    rows = [{"prompt": "ab" * chance.randint(1, 12), "completion": "c" * chance.randint(1, 9)} for _ in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "sharded.py").write_text(SHARDED, encoding="utf-8")
    return folder


def runs_of(place: Path, changes: Mapping[str, dict[str, Any]]) -> dict[str, Path]:
    return train({name: differing(CONFIG, {"name": name, **more}) for name, more in changes.items()}, place)


@pytest.mark.slow
def test_a_clipping_of_0_is_none_under_deepspeed(place: Path) -> None:
    """Accelerate takes 0 for unset, and clips at 1."""
    runs = runs_of(place, RUNS)
    unclipped = runs["zero2-unclipped"]
    difference = {
        name: (largest_loss_difference(unclipped, folder), largest_weight_difference(unclipped, folder))
        for name, folder in runs.items()
    }
    print(f"largest difference of a loss and of a weight to ZeRO-2 unclipped: {difference}")
    assert max(line["grad_norm"] for line in metrics(unclipped)) > 1.1
    assert max(difference["ddp-unclipped"]) <= 1e-5
    assert min(difference["zero2-clipped"]) > 1e-3


@pytest.mark.slow
@pytest.mark.skipif(
    not (ops_folder() / "cpu_adam" / "built").exists(), reason="DeepSpeed's CPU Adam is not built (make setup)"
)
def test_the_optimizer_steps_on_the_cpu(place: Path) -> None:
    """DeepSpeed's own Adam, which is torch's AdamW up to rounding."""
    runs = runs_of(place, OFFLOADED)
    offloaded = runs["zero2-offloaded"]
    plan = json.loads((offloaded / "plan.json").read_text())["groups"][0]
    assert plan["deepspeed"]["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    loss = largest_loss_difference(runs["zero2-adamw"], offloaded)
    weight = largest_weight_difference(runs["zero2-adamw"], offloaded)
    print(f"offloaded: largest difference of a loss {loss:.1e}, of a weight {weight:.1e}")
    assert losses(offloaded)[6] < losses(offloaded)[1]
    assert max(loss, weight) <= 1e-5


def test_a_stage_that_was_not_planned_is_refused(place: Path) -> None:
    folder = prepare(place, {"name": "other-stage", "parallel.strategy": "zero1"})
    plan = json.loads(folder.plan_file.read_text())
    plan["groups"][0]["zero_stage"] = 2
    folder.plan_file.write_text(json.dumps(plan))
    result = launch(folder.launch_file("policy"), "-m", "scaleup.worker", folder.path, "policy", cwd=place)
    assert result.code != 0
    assert "group policy: ZeRO stage: the plan says 2, and 1 came up" in result.stdout + result.stderr
    assert not folder.metrics_file.exists()


def test_a_model_that_was_left_whole_is_refused(place: Path) -> None:
    folder = prepare(place, {"name": "whole", "parallel.strategy": "fsdp2"})
    result = launch(folder.launch_file("policy"), place / "sharded.py", folder.path, place, cwd=place)
    assert result.code == 0, f"{result.stdout}\n{result.stderr}"
    for rank in range(2):
        results = json.loads((place / f"sharded{rank}.json").read_text())
        assert "engine: the plan says 'FSDPModule', and 'LlamaForCausalLM' came up" in results["refusal"]
        assert results["mesh"] == [2]
        assert results["share"] == pytest.approx(0.5, abs=0.02)
