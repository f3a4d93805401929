"""On a GPU: draws are those of the CPU. Skipped where there is none; `make gpu` runs it."""

from __future__ import annotations

import pytest

from scaleup.plan.machine import this_machine

pytestmark = pytest.mark.skipif(this_machine().num_gpus == 0, reason="needs an NVIDIA GPU")


def test_the_noise_of_draws_is_that_of_the_cpu() -> None:
    import torch

    from scaleup.models.gumbel import GumbelMax, hashes

    seeds = torch.randint(-(2**62), 2**62, (16,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(hashes(seeds.cuda(), 5, 50_000).cpu(), hashes(seeds, 5, 50_000))
    scores, rows = 3 * torch.randn(16, 50_000, generator=torch.Generator().manual_seed(1)), torch.arange(16)
    on_gpu = GumbelMax(seeds.cuda())(scores.cuda(), rows.cuda(), 5)
    assert torch.equal(on_gpu.cpu(), GumbelMax(seeds)(scores, rows, 5))
