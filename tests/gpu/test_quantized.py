"""On a GPU: a base in 8 and 4 bits by bitsandbytes' own kernels there. Skipped where there is none; `make gpu` runs
it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaleup.plan.machine import this_machine
from tests.cli import differing, losses, run
from tests.gpu.tiny import CONFIG

pytestmark = [pytest.mark.skipif(this_machine().num_gpus == 0, reason="needs an NVIDIA GPU"), pytest.mark.slow]
LORA = {
    "adapter": {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
    "mixed_precision": "bf16",
}


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_matrix_multiplies_about_as_the_plain_one(bits: int) -> None:
    """To what rounding a row to 127 steps, or a block of 64 to 16 values, leaves of a product of random numbers."""
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    torch.manual_seed(0)
    plain = torch.nn.Linear(512, 256, bias=False)
    made = (
        Linear8bitLt(512, 256, bias=False, has_fp16_weights=False)
        if bits == 8
        else Linear4bit(512, 256, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16)
    )
    made.load_state_dict(plain.state_dict())
    x = torch.randn(64, 512)
    found, expected = made.cuda()(x.cuda().bfloat16()).float().cpu(), plain(x)
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < (0.05 if bits == 8 else 0.15)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_base_in_few_bits_learns_as_on_the_cpu(place: Path, bits: str) -> None:
    config = differing(CONFIG, {**LORA, "quantization": bits})
    on_cpu = losses(run(differing(config, {"name": f"cpu-{bits}"}), cwd=place))
    on_gpu = losses(run(differing(config, {"name": f"gpu-{bits}", "parallel.device": "cuda"}), cwd=place))
    assert max(abs(on_gpu[step] - on_cpu[step]) for step in on_cpu) <= 0.1
