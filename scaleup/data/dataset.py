"""The data section of a config goes in; what the training loop draws from comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from scaleup.config.data import DataConfig
from scaleup.config.stages.base import SupervisedConfig
from scaleup.data.batching import plan_by_length, plan_by_tokens, plan_packs
from scaleup.data.collate import Collator, causal_collator, packed_collator, seq2seq_collator
from scaleup.data.loader import Batching, PlannedLoader, Split, TrainLoader
from scaleup.data.prepared import prepared_rows
from scaleup.data.rows import Joined, Rows, widths_of
from scaleup.data.sources import MapSource, Source, hold_out, open_stream
from scaleup.data.tokenization import RowEncoder
from scaleup.distributed.progress import Progress
from scaleup.errors import ScaleupError
from scaleup.plan.arithmetic import epochs_to_rows, rows_to_steps


@dataclass(frozen=True)
class TrainingData:
    sources: list[Source]
    validation: Rows
    num_rows: int | None
    """Counts the training rows after leaving out the unusable; None when streaming."""
    left_out: Counter[str]
    """Counts the rows that were left out, by the reason."""
    task: str
    retained: dict[str, Rows] = field(default_factory=dict)
    """Maps an old task -> its rows, on which the model is measured."""

    @property
    def num_dropped(self) -> int:
        return sum(self.left_out.values())

    def whole_sources(self) -> list[MapSource]:
        """Return the sources of a run that does not stream."""
        sources = [source for source in self.sources if isinstance(source, MapSource)]
        assert len(sources) == len(self.sources), "the plan refuses streaming"
        return sources


def load_training_data(config: SupervisedConfig, encoder: RowEncoder, progress: Progress | None = None) -> TrainingData:
    """Have the train and validation splits as tokens. Raises ScaleupError for rows that cannot be used."""
    data, seed = config.data, config.train.seed
    sources: list[Source] = []
    validation: list[Rows] = []
    num_rows, left_out = 0, Counter[str]()
    for number, source in enumerate(data.train or []):
        if data.streaming:
            sources.append(open_stream(data, source, encoder, [seed, number]))
            continue
        prepared = prepared_rows(data, source, "train", encoder, progress)
        rows = prepared.rows
        left_out += prepared.left_out
        if data.validation_fraction is not None:
            rows, held = hold_out(rows, data.validation_fraction, [seed, number])
            validation.append(held)
        if config.train.tokens_per_device is not None:
            _refuse_larger(rows, config.train.tokens_per_device, encoder.task, source.path)
        num_rows += len(rows)
        sources.append(MapSource(rows, [seed, number], data.shuffle))
    for source in data.validation or []:
        prepared = prepared_rows(data, source, "validation", encoder, progress)
        validation.append(prepared.rows)
        left_out += prepared.left_out
    total, retained = None if data.streaming else num_rows, _retained(data, encoder, progress)
    return TrainingData(sources, Joined(validation), total, left_out, encoder.task, retained)


def source_rows(data: DataConfig, split: str, encoder: RowEncoder, progress: Progress | None = None) -> list[Rows]:
    """Return the rows of each source of a split as tokens. Raises ScaleupError for rows that cannot be used."""
    return [prepared_rows(data, source, split, encoder, progress).rows for source in getattr(data, split) or []]


def _retained(data: DataConfig, encoder: RowEncoder, progress: Progress | None) -> dict[str, Rows]:
    by_task: dict[str, list[Rows]] = {}
    for source, rows in zip(data.retain or [], source_rows(data, "retain", encoder, progress), strict=True):
        by_task.setdefault(source.task, []).append(rows)
    return {task: Joined(parts) for task, parts in by_task.items()}


def _refuse_larger(rows: Rows, budget: int, task: str, path: str) -> None:
    largest = int(widths_of(rows, task).sum(axis=1).max())
    if largest > budget:
        what = f"{budget} tokens do not hold a row of {path} with {largest}"
        raise ScaleupError.of("train.tokens_per_device", what, f"use at least {largest}, or lower data.max_length")


def collator_for(
    task: str, pad_id: int, shift_right: Callable[[torch.Tensor], torch.Tensor] | None, packing: bool = False
) -> Collator:
    if task == "seq2seq_lm":
        assert shift_right is not None, "an encoder-decoder model brings its own shift"
        return seq2seq_collator(pad_id, shift_right)
    return packed_collator(pad_id) if packing else causal_collator(pad_id)


def train_loader(
    config: SupervisedConfig, data: TrainingData, collate: Collator, split: Split
) -> tuple[TrainLoader, int]:
    """Return the loader and the number of optimizer steps it is good for."""
    weights = [source.weight for source in config.data.train or []]
    drawn, num_steps = None, config.train.max_steps
    if num_steps is None:
        assert data.num_rows is not None and config.train.num_train_epochs is not None, "the plan refuses anything else"
        drawn = epochs_to_rows(config.train.num_train_epochs, data.num_rows)
    batching = _batching(config, data, split)
    if batching is None:
        loader = TrainLoader(data.sources, weights, collate, split, drawn)
        return loader, num_steps or rows_to_steps(drawn or 0, split.global_batch)
    planned = PlannedLoader(data.whole_sources(), weights, collate, split, drawn, batching)
    return planned, num_steps or rows_to_steps(planned.count_units(), split.global_batch)


def _batching(config: SupervisedConfig, data: TrainingData, split: Split) -> Batching | None:
    """Return how rows are put together from their lengths; None where rows come as they are shuffled."""
    train, task = config.train, data.task
    if not (config.data.packing or train.tokens_per_device or train.group_by_length):
        return None
    assert data.num_rows is not None, "the plan refuses streaming"
    if config.data.packing:
        return Batching(plan_packs(config.data.max_length, train.seed), data.num_rows, task, packed=True)
    if train.tokens_per_device:
        plan = plan_by_tokens(train.tokens_per_device, train.seed)
    else:
        plan = plan_by_length(split.global_batch, data.num_rows, train.seed)
    return Batching(plan, data.num_rows, task)
