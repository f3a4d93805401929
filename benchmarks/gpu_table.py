"""Results of `benchmarks/gpu.py` go in; a page of Markdown comes out, with what they hold of and what they stand on."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

PEAKS = {
    "H200": (989.5e12, "nvidia.com, H200 datasheet: 1,979 with sparsity"),
    "H100 80GB HBM3": (989.5e12, "nvidia.com, H100 SXM datasheet: 1,979 with sparsity"),
    "H100 PCIe": (756.5e12, "nvidia.com, H100 PCIe datasheet: 1,513 with sparsity"),
    "A100": (312e12, "nvidia.com, A100 datasheet"),
}
"""Maps a part of a device's name -> its dense bfloat16 peak in FLOP/s, and where that stands."""
PACKAGES = ("torch", "transformers", "accelerate", "trl", "peft", "bitsandbytes", "flash-attn", "liger-kernel", "vllm")
Key = tuple[str, str]
"""Names a shape and a row."""


@dataclass(frozen=True)
class Found:
    """What a row came to: figures, or in words why there are none."""

    said: str = ""
    tokens_per_second: float | None = None
    mfu: float | None = None
    peak_mib: float | None = None
    planned_mib: float | None = None
    times: Mapping[str, float] = field(default_factory=dict)


def vllm_python() -> str | None:
    """The interpreter of an environment with vLLM: that of `make vllm`, or this one."""
    own = Path(__file__).resolve().parents[1] / ".venv-vllm/bin/python"
    return str(own) if own.exists() else sys.executable if importlib.util.find_spec("vllm") else None


def device_name() -> str | None:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def page(
    command: str,
    device: str | None,
    seconds: float,
    tests: str,
    ours: Mapping[Key, Found],
    trl: Mapping[Key, Found],
    rollouts: Mapping[str, Found],
) -> str:
    title = "What a GPU makes of the ladder" if device else "A rehearsal on the CPU: that every row runs, not how fast"
    return "\n".join(
        [
            f"# {title}",
            "",
            f"    {command}",
            "",
            *_stands_on(device, seconds, tests),
            "",
            *_ladder(ours, trl, device is not None),
            "",
            *_rollouts(rollouts),
            "",
        ]
    )


def _stands_on(device: str | None, seconds: float, tests: str) -> Iterator[str]:
    """The machine, the date, the versions, and what MFU is measured by."""
    commit = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    revision = subprocess.run(commit, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    versions = ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name)))
    machine = device or f"a CPU ({platform.machine()})"
    yield f"{machine}, {datetime.now(UTC):%d %B %Y}, commit {revision}; {versions}."
    yield f"It took {seconds / 60:.1f} minutes. tests/gpu: {tests}"
    peak = next((each for part, each in PEAKS.items() if device and part in device), None)
    if peak is None:
        yield f"No MFU: {'the peak of this device is not in benchmarks/gpu_table.py' if device else 'this is a CPU'}."
    else:
        yield f"MFU is of {peak[0] / 1e12:,.1f} TFLOP/s, dense bfloat16 ({peak[1]})."


def _ladder(ours: Mapping[Key, Found], trl: Mapping[Key, Found], on_gpu: bool) -> Iterator[str]:
    """Rates of a rehearsal, whose rows run beside others, are not divided by one another."""
    peak = "peak MiB" if on_gpu else "resident MiB"
    yield f"| shape | row | tokens/s | MFU | {peak} | planned MiB | TRL tokens/s | TRL peak MiB | ratio | said |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for (shape, name), mine in ours.items():
        peer = trl.get((shape, name), Found("not run"))
        mfu = "" if mine.mfu is None else f"{mine.mfu:.1%}"
        rates = mine.tokens_per_second, peer.tokens_per_second
        ratio = f"{rates[0] / rates[1]:.2f}" if on_gpu and rates[0] and rates[1] else ""
        said = "; ".join(part for part in (mine.said, peer.said and f"TRL: {peer.said}") if part)
        cells = [shape, name, _number(rates[0]), mfu, _number(mine.peak_mib), _number(mine.planned_mib)]
        cells += [_number(rates[1]), _number(peer.peak_mib), ratio, said.replace("|", "/")]
        yield f"| {' | '.join(cells)} |"


def _rollouts(rollouts: Mapping[str, Found]) -> Iterator[str]:
    names = ("generation", "forward", "training", "rollout")
    yield f"| rollouts | tokens/s drawn | {' s | '.join(names)} s | peak MiB | said |"
    yield f"|---|---|{'---|' * len(names)}---|---|"
    for name, found in rollouts.items():
        times = [f"{found.times[key]:.3f}" if found.times else "" for key in names]
        cells = [name, _number(found.tokens_per_second), *times, _number(found.peak_mib), found.said.replace("|", "/")]
        yield f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
