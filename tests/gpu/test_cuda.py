"""On a GPU: the same run as on the CPU, and bf16. Skipped where there is none; not run in CI so far."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaleup.plan.machine import this_machine
from tests.cli import differing, losses, run

pytestmark = pytest.mark.skipif(this_machine().num_gpus == 0, reason="needs an NVIDIA GPU")

CONFIG = {
    "name": "cpu",
    "stage": "sft",
    "model": {"path": "builtin:tiny-llama"},
    "data": {"train": "rows.jsonl", "prompt": "{a}", "completion": " {b}"},
    "train": {"max_steps": 8, "learning_rate": 0.1, "optimizer": "sgd", "per_device_train_batch_size": 4},
    "parallel": {"num_processes": 1, "device": "cpu"},
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    rows = [f'{{"a": "{"x" * (3 + 7 * i % 40)}", "b": "answer {i}"}}\n' for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(("precision", "bound"), [("no", 1e-3), ("bf16", 5e-2)])
def test_gpu_follows_cpu(place: Path, precision: str, bound: float) -> None:
    on_cpu = losses(run(CONFIG, cwd=place))
    changes = {"name": f"gpu-{precision}", "parallel.device": "cuda", "mixed_precision": precision}
    on_gpu = losses(run(differing(CONFIG, changes), cwd=place))
    assert max(abs(on_gpu[step] - on_cpu[step]) for step in on_cpu) <= bound


def test_the_noise_of_draws_is_that_of_the_cpu() -> None:
    import torch

    from scaleup.models.gumbel import GumbelMax, hashes

    seeds = torch.randint(-(2**62), 2**62, (16,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(hashes(seeds.cuda(), 5, 50_000).cpu(), hashes(seeds, 5, 50_000))
    scores, rows = 3 * torch.randn(16, 50_000, generator=torch.Generator().manual_seed(1)), torch.arange(16)
    on_gpu = GumbelMax(seeds.cuda())(scores.cuda(), rows.cuda(), 5)
    assert torch.equal(on_gpu.cpu(), GumbelMax(seeds)(scores, rows, 5))
