"""This module runs a teacher once over the rows that a run learns from, and writes its top k at every labelled position
to files of the run's folder, from which training reads them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap

from scaleup.artifacts.data_file import models_known_at
from scaleup.artifacts.files import aside_of, commit_folder, read_json, write_json
from scaleup.config.stages.distill import CacheSettings, DistillConfig
from scaleup.data.collate import Collator, TopK
from scaleup.data.dataset import TrainingData
from scaleup.data.rows import Changed, Chosen, Joined, Rows, View, widths_of
from scaleup.data.tokenization import Tokens
from scaleup.distill.divergence import top_k_of
from scaleup.distributed.runtime import Runtime
from scaleup.errors import ScaleupError
from scaleup.models.adapted import load_finished
from scaleup.models.heads import HiddenHead, has_plain_head, swap_head
from scaleup.models.soft_prompts import num_prepended
from scaleup.train.head_loss import linear_gradients
from scaleup.train.job import Job
from scaleup.train.losses import labelled_logits

INDEX = "index.json"


@dataclass(frozen=True)
class Cache:
    """Holds the folder of a teacher's top k, and reads and makes its files: `ids-P.npy` (n_P, k) in int32 and
    `log_probs-P.npy` (n_P, k + 1) in float32 for each part P.

    Row i of the run is in part i % parts, after the rows of that part before it; so each process writes files of its
    own, and any number of processes can read them. A cache is whole: the folder gets its name when all of it is
    written."""

    folder: Path
    top_k: int
    fingerprint: str
    """Is a hash of the rows and of the run's models: a cache of others is not read."""

    def is_written(self) -> bool:
        """Returns whether the folder is there and holds these rows."""
        index = self.folder / INDEX
        return index.is_file() and read_json(index)["fingerprint"] == self.fingerprint

    def read(self, counts: np.ndarray) -> Rows:
        """Returns the top k of each row, whose numbers of labelled positions are `counts`: ids (n, k) and
        log-probabilities (n, k + 1), read when they are asked for."""
        num_parts = read_json(self.folder / INDEX)["parts"]
        return _TopKRows([[ArrayFile(file) for file in _files(self.folder, part)] for part in range(num_parts)], counts)

    def num_bytes(self, count: int) -> int:
        """Returns the bytes that `count` positions take."""
        return count * (4 * self.top_k + 4 * (self.top_k + 1))

    def part(self, number: int, count: int) -> list[ArrayFile]:
        """Makes a part's files, ids (count, k) and log-probabilities (count, k + 1), beside where the folder will
        be."""
        ids, log_probs = _files(aside_of(self.folder), number)
        open_memmap(ids, "w+", np.int32, (count, self.top_k))
        open_memmap(log_probs, "w+", np.float32, (count, self.top_k + 1))
        return [ArrayFile(file, writable=True) for file in (ids, log_probs)]


class ArrayFile:
    """Reads and writes rows of a matrix that is a file in numpy's format. It is not mapped: pages of it that were
    looked at would count as this process's."""

    def __init__(self, file: Path, writable: bool = False) -> None:
        """Raises ValueError for a file that is none, or too short."""
        mapped = np.load(file, mmap_mode="r")
        (_, self._width), self._type, self._offset = mapped.shape, mapped.dtype, mapped.offset
        self._file = file.open("r+b" if writable else "rb", buffering=0)

    def read(self, first: int, end: int) -> np.ndarray:
        size = self._width * self._type.itemsize
        found = os.pread(self._file.fileno(), (end - first) * size, self._offset + first * size)
        return np.frombuffer(found, self._type).reshape(-1, self._width)

    def write(self, first: int, rows: np.ndarray) -> None:
        place = self._offset + first * self._width * self._type.itemsize
        left = rows.astype(self._type, copy=False).tobytes()
        while left:
            count = os.pwrite(self._file.fileno(), left, place)
            left, place = left[count:], place + count

    def flush(self) -> None:
        os.fsync(self._file.fileno())


class _TopKRows(View):
    """Holds the top k of each row, in the files of P parts."""

    def __init__(self, parts: Sequence[Sequence[ArrayFile]], counts: np.ndarray) -> None:
        self._parts, self._num_rows = parts, len(counts)
        self._starts = [_starts(counts[part :: len(parts)]) for part in range(len(parts))]

    def __len__(self) -> int:
        return self._num_rows

    def row(self, place: int) -> tuple[np.ndarray, ...]:
        within, part = divmod(place, len(self._parts))
        first, end = self._starts[part][within : within + 2]
        return tuple(file.read(first, end) for file in self._parts[part])


def with_cached_teacher(
    job: Job[DistillConfig],
    settings: CacheSettings,
    data: TrainingData,
    collator: Callable[[Any], Collator],
    num_ids: int | None = None,
) -> TrainingData:
    """Returns the data with the teacher's top k in each row, also of validation: written once, and read again by a run
    that is resumed. `collator` makes one for a model. Every rank must call it.

    Raises ScaleupError as loading does, and where the disk is too small."""
    config, runtime = job.config, job.runtime
    sources = data.whole_sources()
    rows = Joined([*(source.rows for source in sources), data.validation])
    counts, fingerprint = _known(rows, data.task, models_known_at(job.folder.data_file))
    cache = Cache(job.folder.path / "teacher" / "top_k", settings.top_k, fingerprint)
    if not cache.is_written():
        cache.folder.parent.mkdir(parents=True, exist_ok=True)
        _check_disk(cache, int(counts.sum()))
        runtime.progress.report("loading the teacher")
        model = load_finished(config.teacher, job.plan.models["teacher"], None, config.mixed_precision, runtime.device)
        outputs = TopKTeacher(model, collator(model), settings.top_k, config.distill.temperature, num_ids)
        lengths = widths_of(rows, data.task)[:, 0]
        _write(cache, outputs, Labelled(rows, counts, lengths), config.train.per_device_eval_batch_size, runtime)
        del model, outputs
        runtime.accelerator.free_memory()
    top_k, first = cache.read(counts), 0
    for source in sources:
        source.rows = _with_top_k(source.rows, top_k, first)
        first += len(source.rows)
    return replace(data, validation=_with_top_k(data.validation, top_k, first))


def _with_top_k(rows: Rows, top_k: Rows, first: int) -> Rows:
    """Returns rows with their top k, which begin at a place of all."""
    return Changed(rows, lambda row, place: replace(row, teacher_top_k=top_k[first + place]))


@dataclass(frozen=True)
class TopKTeacher:
    """Computes a teacher's top k at the labelled positions of rows."""

    model: Any
    collate: Collator
    top_k: int
    temperature: float
    num_ids: int | None = None
    """Counts the ids that are looked at (see `SoftAndHard`)."""

    def __post_init__(self) -> None:
        if has_plain_head(self.model):
            swap_head(self.model.get_output_embeddings(), HiddenHead)

    @torch.no_grad()
    def __call__(self, rows: Sequence[Tokens], device: torch.device) -> TopK:
        """Returns the top k at the N labelled positions of the rows: ids (N, k) and log-probabilities (N, k + 1).

        As in training, logits of a few hundred positions exist at a time, where the head is plain."""
        batch = self.collate(rows).to(device)
        places = batch.places.behind(num_prepended(self.model))
        head = self.model.get_output_embeddings()
        if not isinstance(head, HiddenHead):
            logits = labelled_logits(self.model, places, batch.inputs)
            return top_k_of(logits.float()[:, : self.num_ids], self.top_k, self.temperature)
        hidden = places.select(self.model(**batch.inputs, use_cache=False).logits)
        chunks: list[TopK] = []

        def keep(logits: torch.Tensor, positions: slice) -> torch.Tensor:
            chunks.append(top_k_of(logits[:, : self.num_ids], self.top_k, self.temperature))
            return logits.new_zeros(())

        linear_gradients(hidden, head.weight, head.bias, keep, needs=(False, False, False))
        return TopK(torch.cat([chunk.ids for chunk in chunks]), torch.cat([chunk.log_probs for chunk in chunks]))


@dataclass(frozen=True)
class Labelled:
    """Holds rows, how many positions of each have a label, and how many tokens each has."""

    rows: Rows
    counts: np.ndarray
    lengths: np.ndarray

    def part(self, number: int, num_parts: int) -> Labelled:
        places = np.arange(number, len(self.rows), num_parts)
        return Labelled(Chosen(self.rows, places), self.counts[places], self.lengths[places])


def _write(cache: Cache, teacher: TopKTeacher, whole: Labelled, batch_size: int, runtime: Runtime) -> None:
    """Lets each rank write its part, and the first one the index and the folder's name. Rows of similar length share a
    batch."""
    aside = aside_of(cache.folder)
    if runtime.is_main:
        shutil.rmtree(aside, ignore_errors=True)  # of a start that was killed
        aside.mkdir()
    runtime.barrier()
    own = whole.part(runtime.rank, runtime.world)
    files, starts = cache.part(runtime.rank, int(own.counts.sum())), _starts(own.counts)
    order = np.argsort(own.lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        with runtime.accelerator.autocast():
            outputs = teacher([own.rows[row] for row in chosen], runtime.device)
        ends = np.cumsum(own.counts[chosen])
        for file, values in zip(files, (outputs.ids, outputs.log_probs), strict=True):
            for row, of_row in zip(chosen, np.split(values.cpu().numpy(), ends[:-1]), strict=True):
                file.write(starts[row], of_row)
        runtime.progress.report("what the teacher says", first + len(chosen), len(order))
    for file in files:
        file.flush()
    runtime.barrier()
    if runtime.is_main:
        write_json(aside / INDEX, {"parts": runtime.world, "fingerprint": cache.fingerprint})
        commit_folder(cache.folder)
    runtime.barrier()


def _files(folder: Path, part: int) -> tuple[Path, Path]:
    return folder / f"ids-{part}.npy", folder / f"log_probs-{part}.npy"


def _starts(counts: np.ndarray) -> np.ndarray:
    """Returns offsets (rows + 1): where each row begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _known(rows: Rows, task: str, models: str) -> tuple[np.ndarray, str]:
    """Returns how many positions of each row have a label, and a hash of the rows and of the run's models."""
    digest, counts = hashlib.sha256(models.encode()), np.empty(len(rows), np.int64)
    for place, row in enumerate(rows):
        assert isinstance(row, Tokens), "the plan refuses other tasks"
        counts[place] = row.num_positions(task)
        for part in (row.input_ids, row.labels):
            digest.update(len(part).to_bytes(8, "little") + part.tobytes())
    return counts, digest.hexdigest()


def _check_disk(cache: Cache, count: int) -> None:
    """Refuses a disk that is too small, before the teacher has worked for nothing."""
    needed, free = cache.num_bytes(count), shutil.disk_usage(cache.folder.parent).free
    if needed > free:
        folder, sizes = cache.folder.parent, [f"{size / 2**30:.1f} GiB" for size in (needed, free)]
        what = f"{count:,} positions take {sizes[0]} in {folder}, which has {sizes[1]} left"
        raise ScaleupError.of("distill.cache.top_k", what, "use fewer, or another runs_dir")
