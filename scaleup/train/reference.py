"""This module computes the log-probabilities of all responses once before the first step, when the policy still is its
own reference, and keeps them in the run's folder: training then needs no reference in memory, and no pass through
it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from scaleup.artifacts.data_file import models_known_at
from scaleup.artifacts.files import aside_of, reason_of
from scaleup.config.stages.dpo import DPOConfig
from scaleup.data.collate import Batch, Collator
from scaleup.data.dataset import TrainingData
from scaleup.data.loader import eval_batches
from scaleup.data.rows import Changed, Chosen, Joined, Rows, widths_of
from scaleup.errors import ScaleupError
from scaleup.models.padding import padding_known
from scaleup.train.job import Job

FILE = "reference.safetensors"
LOGPS, FINGERPRINT = "logps", "fingerprint"

Logps = Callable[[Any, Batch], torch.Tensor]
"""Maps (wrapped policy, batch on its device) -> log-probabilities (B, 2) of each row's two responses."""


class CachedReference:
    """Gives every row of a run the reference's log-probabilities of its two responses, 8 bytes a row."""

    def __init__(self, job: Job[DPOConfig], data: TrainingData) -> None:
        self._job, self._task = job, data.task
        self._file = job.folder.path / FILE
        sources = data.whole_sources()
        self._rows = Joined([*(source.rows for source in sources), data.validation])
        self._logps = np.empty((0, 2), np.float32)
        first = 0
        for source in sources:
            source.rows = self._told(source.rows, first)
            first += len(source.rows)
        self.data = replace(data, validation=self._told(data.validation, first))
        """Holds the run's rows, which can be read once the cache is filled."""

    def _told(self, rows: Rows, first: int) -> Rows:
        """Returns rows with what the reference says of them, which begin at a place of all."""
        return Changed(rows, lambda row, place: replace(row, reference_logps=self._logps[first + place]))

    def fill(self, policy: Any, collate: Collator, logps: Logps) -> None:
        """Reads the cache or, where there is none of these rows and models, asks the wrapped policy, which has not
        learned yet. Every rank must call it. Raises ScaleupError where the file cannot be written."""
        runtime, known_by = self._job.runtime, self._fingerprint()
        found = _read(self._file, known_by)
        [num_found] = runtime.sum(float(found is not None))
        if found is not None and num_found == runtime.world:
            self._logps = found
            return
        self._logps = self._asked(policy, collate, logps)
        if runtime.is_main:
            _write(self._file, self._logps, known_by)
        runtime.barrier()

    @torch.no_grad()
    def _asked(self, policy: Any, collate: Collator, logps: Logps) -> np.ndarray:
        """Returns the policy's log-probabilities (rows, 2) in float32. Rows of similar length share a batch."""
        runtime, count = self._job.runtime, len(self._rows)
        size = self._job.config.train.per_device_eval_batch_size
        order = np.argsort(widths_of(self._rows, self._task).sum(axis=1), kind="stable")
        asked, first = torch.zeros(count, 2, device=runtime.device), runtime.rank * size
        policy.eval()
        for batch in eval_batches(Chosen(self._rows, order), collate, size, runtime.rank, runtime.world):
            runtime.progress.report("what the reference says", min(first, count), count)
            with padding_known(batch.is_padded):
                told = logps(policy, batch.to(runtime.device)).float()
            mine = asked[first : first + size]
            mine += told[: len(mine)]  # what is more is a filler's
            first += size * runtime.world
        runtime.shard_again(policy)
        policy.train()
        found = np.empty((count, 2), np.float32)
        found[order] = runtime.sum_tensor(asked).numpy()
        return found

    def _fingerprint(self) -> str:
        """Returns a hash of the rows and of the run's models."""
        digest = hashlib.sha256(models_known_at(self._job.folder.data_file).encode())
        for row in self._rows:
            for response in row.responses:
                for part in (response.input_ids, response.labels):
                    digest.update(len(part).to_bytes(8, "little") + part.tobytes())
        return digest.hexdigest()


def _read(file: Path, known_by: str) -> np.ndarray | None:
    """Returns the log-probabilities in a file; None where it is damaged, or of other rows or models."""
    with suppress(OSError, SafetensorError), safe_open(file, framework="np") as opened:
        if (opened.metadata() or {}).get(FINGERPRINT) == known_by:
            logps: np.ndarray = opened.get_tensor(LOGPS)
            return logps
    return None


def _write(file: Path, logps: np.ndarray, known_by: str) -> None:
    aside = aside_of(file)
    try:
        save_file({LOGPS: logps}, aside, metadata={FINGERPRINT: known_by})
        aside.replace(file)
    except (OSError, SafetensorError) as error:
        what = f"cannot be written: {reason_of(error, file.parent)}"
        raise ScaleupError.of(str(file), what, "make room on the disk, or use another runs_dir") from error
