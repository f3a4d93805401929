"""The data section of a config -> what the training loop draws from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from scaleup.config.stages import SFTConfig
from scaleup.data.collate import Collator, causal_collator, seq2seq_collator
from scaleup.data.loader import Split, TrainLoader
from scaleup.data.sources import MapSource, Source, encode_source, hold_out, open_stream
from scaleup.data.tokenization import Encoder, Tokens
from scaleup.plan.arithmetic import epochs_to_rows, rows_to_steps


@dataclass(frozen=True)
class TrainingData:
    sources: list[Source]
    validation: list[Tokens]
    num_rows: int | None
    """Training rows after leaving out the unusable; None when streaming."""
    num_dropped: int


def load_training_data(config: SFTConfig, encoder: Encoder) -> TrainingData:
    """Read and tokenize the train and validation splits. Raises ScaleupError for rows that cannot be used."""
    data, seed = config.data, config.train.seed
    sources: list[Source] = []
    validation: list[Tokens] = []
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
        num_rows += len(rows)
        sources.append(MapSource(rows, [seed, number], data.shuffle))
    for source in data.validation or []:
        rows, dropped = encode_source(data, source, "validation", encoder)
        validation += rows
        num_dropped += dropped
    return TrainingData(sources, validation, None if data.streaming else num_rows, num_dropped)


def collator_for(task: str, pad_id: int, shift_right: Callable[[torch.Tensor], torch.Tensor] | None) -> Collator:
    if task == "seq2seq_lm":
        assert shift_right is not None, "an encoder-decoder model brings its own shift"
        return seq2seq_collator(pad_id, shift_right)
    return causal_collator(pad_id)


def train_loader(config: SFTConfig, data: TrainingData, collate: Collator, split: Split) -> tuple[TrainLoader, int]:
    """The loader and the number of optimizer steps it is good for."""
    weights = [source.weight for source in config.data.train or []]
    if config.train.max_steps is not None:
        return TrainLoader(data.sources, weights, collate, split, None), config.train.max_steps
    assert data.num_rows is not None and config.train.num_train_epochs is not None, "the plan refuses anything else"
    drawn = epochs_to_rows(config.train.num_train_epochs, data.num_rows)
    return TrainLoader(data.sources, weights, collate, split, drawn), rows_to_steps(drawn, split.global_batch)
