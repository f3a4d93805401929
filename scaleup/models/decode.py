"""A model and a batch of prompts go in; the tokens that continue them come out, one a step for all rows that go on.

This is the loop inside Transformers' `generate`, which takes it as `custom_generate`: everything before it (encoders,
positions, masks, caches, the processors of the model's generation config) is Transformers' own. What differs: rows that
have ended leave the batch, so that nothing is computed for them, and the host reads the device once a step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from transformers import DynamicCache, EncoderDecoderCache, LogitsProcessorList, StoppingCriteriaList
from transformers import generation as processors
from transformers.cache_utils import DummyLayer, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import ModelOutput

Choose = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""Chooses tokens (n,) from scores (n, V), the numbers (n,) of their rows in the whole batch, and their position."""

KEPT = 0.75
"""Holds the share of a batch's rows that go on below which the others leave it: to select rows copies the cache."""

ROOM = 64
"""Counts the positions by which a cache's memory grows."""


class GrowingLayer(DynamicLayer):
    """Is a layer of a cache that writes new tokens behind those that are there, where Transformers' own copies all of
    them to new memory for each token. Not for forward passes that keep gradients."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns keys and values (B, heads, S, D) of all tokens, the new ones last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.memory = [self.keys, self.values]
        length = self.get_seq_length()
        self.keys: torch.Tensor = self._append(0, length, self.keys, key_states)
        self.values: torch.Tensor = self._append(1, length, self.values, value_states)
        return self.keys, self.values

    def _append(self, place: int, length: int, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        memory, total = self.memory[place], length + new.shape[-2]
        # rows that were taken out have made `old` a tensor of its own
        if not length or memory.data_ptr() != old.data_ptr() or memory.shape[-2] < total:
            memory = self.memory[place] = new.new_empty(*new.shape[:-2], total + ROOM, new.shape[-1])
            if length:
                memory[..., :length, :] = old
        memory[..., length:total, :] = new
        return memory[..., :total, :]


LAYERS = (DynamicLayer, GrowingLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer, DummyLayer)
"""Holds the layers of caches that select rows. Others, such as those with a recurrent state, keep all of them."""
BY_ROW = ("attention_mask", "decoder_attention_mask", "position_ids", "token_type_ids", "inputs_embeds")
"""Names the tensors (B, ...) among a model's arguments."""
ROW_BY_ROW = (
    processors.RepetitionPenaltyLogitsProcessor,
    processors.MinLengthLogitsProcessor,
    processors.MinNewTokensLengthLogitsProcessor,
    processors.NoRepeatNGramLogitsProcessor,
    processors.SequenceBiasLogitsProcessor,
    processors.NoBadWordsLogitsProcessor,
    processors.SuppressTokensLogitsProcessor,
    processors.SuppressTokensAtBeginLogitsProcessor,
    processors.ForcedBOSTokenLogitsProcessor,
    processors.ForcedEOSTokenLogitsProcessor,
    processors.InfNanRemoveLogitsProcessor,
    processors.TemperatureLogitsWarper,
    processors.TopKLogitsWarper,
    processors.TopPLogitsWarper,
    processors.MinPLogitsWarper,
    processors.TypicalLogitsWarper,
)
"""Holds the processors that see a row by itself, and remember none; the first remembers its padding."""


def likeliest(scores: torch.Tensor, rows: torch.Tensor, position: int) -> torch.Tensor:
    """Returns the token (n,) with the highest of the scores (n, V): what is drawn as the temperature goes to 0."""
    return scores.argmax(dim=-1)


@dataclass(frozen=True)
class Decoder:
    """Is a loop for `custom_generate`: greedy, or as `choose` draws from what the processors leave of the logits."""

    choose: Choose = likeliest
    limits: torch.Tensor | None = None
    """Holds the most tokens (B,) of each row."""
    together: bool = False
    """Tells whether all ranks make equally many steps, as ranks must that gather weights for each of them."""

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: Any,
        **inputs: Any,
    ) -> torch.Tensor:
        """Returns token ids (B, S + T): those given (B, S) and T more, padded behind a row's end."""
        rows = torch.arange(len(input_ids), device=input_ids.device)
        running, pad = torch.ones_like(rows, dtype=torch.bool), generation_config._pad_token_tensor
        columns: list[torch.Tensor] = []
        ids = input_ids
        _let_grow(inputs.get("past_key_values"))
        outputs = model._prefill(input_ids, generation_config, inputs)
        with model._optimize_model_for_decode():
            while True:
                inputs = model._update_model_kwargs_for_generation(outputs, inputs, model.config.is_encoder_decoder)
                logits = outputs.logits[:, -1].to(dtype=torch.float32, copy=True)  # the whole may be large
                del outputs
                chosen = self.choose(logits_processor(ids, logits), rows, len(columns))
                chosen = torch.where(running, chosen, pad)
                columns.append(pad.expand(len(input_ids)).index_copy(0, rows, chosen))
                ids = torch.cat([ids, chosen[:, None]], dim=1)
                running &= ~stopping_criteria(ids, None)
                if self.limits is not None:
                    running &= self.limits[rows] > len(columns)
                own, go_on = self._read(running)
                if not go_on:
                    return torch.cat([input_ids, torch.stack(columns, dim=1)], dim=1)
                if 0 < sum(own) < KEPT * len(own) and _selects(inputs, logits_processor):
                    kept = torch.tensor([row for row, runs in enumerate(own) if runs], device=rows.device)
                    rows, running, ids = rows[kept], running[kept], ids[kept]
                    inputs = {name: _selected(value, kept) for name, value in inputs.items()}
                    _select_in(logits_processor, kept)
                last = 1 if inputs["use_cache"] else None
                arranged = model.prepare_inputs_for_generation(ids, next_sequence_length=last, **inputs)
                outputs = model(**arranged, return_dict=True)

    def _read(self, running: torch.Tensor) -> tuple[list[bool], bool]:
        """Returns which rows go on, and whether any does on a rank that must be waited for. It reads the device
        once."""
        if not self.together:
            own = running.tolist()
            return own, any(own)
        anywhere = running.any(dim=0, keepdim=True).to(torch.int32)
        dist.all_reduce(anywhere, dist.ReduceOp.MAX)
        *own, go_on = torch.cat([running, anywhere.bool()]).tolist()
        return own, go_on


def _let_grow(cache: Any) -> None:
    """Lets a cache of Transformers' own that holds nothing yet grow in place."""
    of_decoder = getattr(cache, "self_attention_cache", cache)
    if type(of_decoder) is DynamicCache and not of_decoder.offloading:
        for layer in of_decoder.layers:
            if type(layer) is DynamicLayer and not layer.is_initialized:
                layer.__class__ = GrowingLayer


def _selects(inputs: Mapping[str, Any], processors: Collection[Any]) -> bool:
    """Returns whether rows can be taken out of everything that a model is given."""
    cache: Any = inputs.get("past_key_values")
    is_pair = type(cache) is EncoderDecoderCache
    parts = (cache.self_attention_cache, cache.cross_attention_cache) if is_pair else (cache,)
    known, positions = {*BY_ROW, "encoder_outputs", "past_key_values"}, inputs.get("position_ids")
    return (
        all(type(part) is DynamicCache and not part.offloading for part in parts)
        and all(type(layer) in LAYERS for part in parts for layer in part.layers)
        and (positions is None or positions.ndim == 2)
        and not any(
            isinstance(value, torch.Tensor | ModelOutput) for name, value in inputs.items() if name not in known
        )
        and all(type(processor) in ROW_BY_ROW for processor in processors)
    )


def _select_in(processors: Collection[Any], kept: torch.Tensor) -> None:
    """Takes rows out of what processors remember."""
    for processor in processors:
        padding = getattr(processor, "prompt_ignore_length", None)
        if isinstance(padding, torch.Tensor):
            processor.prompt_ignore_length = padding[kept]


def _selected(value: Any, kept: torch.Tensor) -> Any:
    """Returns rows of an argument of the model: of a tensor, of all tensors of an encoder's output, of a cache."""
    if isinstance(value, DynamicCache | EncoderDecoderCache):
        value.batch_select_indices(kept)
        return value
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _selected(part, kept) for name, part in value.items()})
    if isinstance(value, tuple):
        return tuple(_selected(part, kept) for part in value)
    return value[kept] if isinstance(value, torch.Tensor) else value
