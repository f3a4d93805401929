"""`make gpu` is never run blind: where there is no GPU, every one of its rows is rehearsed on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scaleup.plan.machine import this_machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
ON_GPUS = {"attention: flash_attention_2", "attention: flex_attention", "Liger"}
NOT_OF_TRL = {*ON_GPUS, "torch.compile"}


@pytest.mark.skipif(this_machine().num_gpus > 0, reason="make gpu measures, where there is a GPU")
def test_every_row_is_rehearsed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command = [sys.executable, "benchmarks/gpu.py", "--output", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    tables = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    ladder = {cells[1]: cells for cells in tables if cells[0] == "tiny"}
    assert len(ladder) == 12
    for name, (_, _, rate, mfu, resident, planned, trl, _, ratio, said) in ladder.items():
        assert (mfu, ratio) == ("", ""), "figures of a CPU that say nothing of a GPU"
        if name in ON_GPUS:
            assert (rate, planned) == ("", "")
            assert "a GPU, and this run is on the CPU" in said, "the words of the refusal"
        else:
            assert rate and resident and planned, name
        assert bool(trl) == (name not in NOT_OF_TRL), f"{name}: {said}"
    drawn = {cells[0]: cells for cells in tables if cells[0].startswith(("PPO", "GRPO"))}
    assert len(drawn) == 4
    assert all(drawn[f"{stage}, Transformers"][1] for stage in ("PPO", "GRPO"))
    assert "No MFU: this is a CPU." in page.read_text() and "tests/gpu:" in page.read_text()
