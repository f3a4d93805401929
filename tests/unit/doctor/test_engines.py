"""Environments of engines: asked by their own Python, whatever it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.doctor.engines import engine_findings
from scaleup.doctor.finding import Finding
from scaleup.plan.types import GeneratorPlan
from tests.unit.launcher.plans import group, plan_of


def found(python: Path, **changes: Any) -> Finding:
    engine = GeneratorPlan(
        python=str(python),
        dtype="float32",
        max_model_len=64,
        max_num_seqs=8,
        kv_cache_gib=1,
        gpu_memory_utilization=0.9,
        max_lora_rank=None,
    )
    serving = group(name="generator", **changes).model_copy(update={"generator": engine, "serves": True})
    (finding,) = engine_findings(plan_of(RunFolder(Path("/runs/x")), group(), serving), 0)
    return finding


def answering(folder: Path, line: str, code: int = 0) -> Path:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{line}\nexit {code}\n")
    python.chmod(0o755)
    return python


TELLS = """echo '{"vllm": "0.32.0", "torch": "2.13.0", "gpus": 1}'"""


def test_an_environment_tells_of_itself(tmp_path: Path) -> None:
    finding = found(answering(tmp_path, f"echo some warning\n{TELLS}"))
    assert (finding.name, finding.level, finding.what) == (
        "generator.python",
        "ok",
        "vLLM 0.32.0 with torch 2.13.0",
    )


@pytest.mark.parametrize(("first", "level"), [(0, "ok"), (1, "fail")])
def test_it_must_see_the_gpus_up_to_its_own(tmp_path: Path, first: int, level: str) -> None:
    on_gpu = {"device": "cuda", "backend": "nccl", "first_device": first}
    assert found(answering(tmp_path, TELLS), **on_gpu).level == level


def test_one_without_vllm_or_without_a_python_fails(tmp_path: Path) -> None:
    without = found(answering(tmp_path, "echo \"ModuleNotFoundError: No module named 'vllm'\" >&2", 1))
    assert without.level == "fail" and without.what.endswith("No module named 'vllm'")
    gone = found(tmp_path / "gone")
    assert gone.level == "fail" and "No such file" in gone.what
