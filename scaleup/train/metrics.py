"""A step's numbers go in; they come out in `metrics.jsonl`, TensorBoard and other trackers, all from one call."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Mapping
from typing import Any

import torch

from scaleup.artifacts.files import write_text
from scaleup.artifacts.run_folder import RunFolder
from scaleup.distributed.runtime import Runtime


class MetricsLog:
    """Logs the metrics of a run: rank 0 writes; other ranks' calls do nothing. A run that goes on keeps one line a
    step: what a killed attempt logged after the checkpoint is taken out first."""

    def __init__(
        self, runtime: Runtime, run: RunFolder, name: str, hyperparameters: Mapping[str, Any], start_step: int
    ) -> None:
        """Open the log: `name` and `hyperparameters` (nested mappings of what JSON can hold) are what trackers show of
        the run."""
        self._runtime = runtime
        self._file = run.metrics_file
        goes_on = start_step > 0
        runtime.accelerator.init_trackers(
            name,
            config=None if goes_on else _flat(hyperparameters),
            init_kwargs={"tensorboard": {"purge_step": start_step + 1}} if goes_on else {},
        )
        if runtime.is_main:
            kept = [line for line in self._lines() if goes_on and json.loads(line)["step"] <= start_step]
            write_text(self._file, "".join(kept))

    def log(self, step: int, **values: Any) -> None:
        if self._runtime.is_main:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self._runtime.accelerator.log(values, step=step)

    def close(self) -> None:
        """Flush and end the trackers. It is not Accelerate's `end_training`, which ends the process group with them."""
        for tracker in self._runtime.accelerator.trackers:
            tracker.finish()

    def _lines(self) -> list[str]:
        """Return whole lines only: a killed process may have left half of one."""
        if not self._file.is_file():
            return []
        return [
            line for line in self._file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
        ]


def perplexity(mean_loss: float) -> float:
    """Return exp of the mean negative log-likelihood a token, in nats; infinity where that overflows."""
    return math.inf if mean_loss > 700 else math.exp(mean_loss)


def peak_memory_mib(device: torch.device) -> float:
    """Return the most memory in MiB that this process has held so far: on the GPU where there is one, else its resident
    set."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    flat: dict[str, str | int | float | bool] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (str, int, float, bool)) else json.dumps(value)
    return flat
