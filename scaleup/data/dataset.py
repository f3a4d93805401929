"""The data section of a config goes in; what the training loop draws from comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from scaleup.config.stages.base import SupervisedConfig
from scaleup.data.batching import padded_size, plan_by_length, plan_by_tokens, plan_packs
from scaleup.data.collate import Collator, causal_collator, packed_collator, seq2seq_collator
from scaleup.data.loader import Batching, PlannedLoader, Split, TrainLoader
from scaleup.data.sources import MapSource, Source, encode_source, hold_out, open_stream
from scaleup.data.tokenization import RowEncoder, TokenRow
from scaleup.errors import ScaleupError
from scaleup.plan.arithmetic import epochs_to_rows, rows_to_steps


@dataclass(frozen=True)
class TrainingData:
    sources: list[Source]
    validation: list[TokenRow]
    num_rows: int | None
    """Counts the training rows after leaving out the unusable; None when streaming."""
    num_dropped: int
    task: str

    def whole_sources(self) -> list[MapSource]:
        """Return the sources of a run that does not stream."""
        sources = [source for source in self.sources if isinstance(source, MapSource)]
        assert len(sources) == len(self.sources), "the plan refuses streaming"
        return sources


def load_training_data(config: SupervisedConfig, encoder: RowEncoder) -> TrainingData:
    """Read and tokenize the train and validation splits. Raises ScaleupError for rows that cannot be used."""
    data, seed = config.data, config.train.seed
    sources: list[Source] = []
    validation: list[TokenRow] = []
    num_rows, num_dropped = 0, 0
    for number, source in enumerate(data.train or []):
        if data.streaming:
            sources.append(open_stream(data, source, encoder, [seed, number]))
            continue
        rows, dropped = encode_source(data, source, "train", encoder)
        num_dropped += dropped
        if data.validation_fraction is not None:
            rows, held = hold_out(rows, data.validation_fraction, [seed, number])
            validation += held
        if config.train.tokens_per_device is not None:
            _refuse_larger(rows, config.train.tokens_per_device, encoder.task, source.path)
        num_rows += len(rows)
        sources.append(MapSource(rows, [seed, number], data.shuffle))
    for source in data.validation or []:
        rows, dropped = encode_source(data, source, "validation", encoder)
        validation += rows
        num_dropped += dropped
    return TrainingData(sources, validation, None if data.streaming else num_rows, num_dropped, encoder.task)


def _refuse_larger(rows: Sequence[TokenRow], budget: int, task: str, path: str) -> None:
    largest = max(padded_size([row], task) for row in rows)
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
    planned = PlannedLoader(data.sources, weights, collate, split, drawn, batching)
    return planned, num_steps or rows_to_steps(planned.count_units(), split.global_batch)


def _batching(config: SupervisedConfig, data: TrainingData, split: Split) -> Batching | None:
    """Return how rows are put together from their lengths; None where rows come as they are shuffled."""
    train, task = config.train, data.task
    if not (config.data.packing or train.tokens_per_device or train.group_by_length):
        return None
    assert data.num_rows is not None, "the plan refuses streaming"
    if config.data.packing:
        plan = plan_packs(config.data.max_length, train.seed)
        return Batching(plan, lambda unit: sum(len(row.input_ids) for row in unit), data.num_rows, packed=True)
    if train.tokens_per_device:
        plan = plan_by_tokens(train.tokens_per_device, task, train.seed)
    else:
        plan = plan_by_length(split.global_batch, data.num_rows, task, train.seed)
    return Batching(plan, lambda unit: padded_size(unit, task), data.num_rows)
