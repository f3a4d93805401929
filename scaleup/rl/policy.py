"""This module holds the model that reinforcement learning trains: policy, value head and reference in one module, so
that one engine wraps, shards and saves them together."""

from __future__ import annotations

import inspect
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from scaleup.config.algorithms import PolicyGradient, PPOAlgorithm
from scaleup.data.collate import Places
from scaleup.errors import ScaleupError
from scaleup.models.adapters import is_adapted, snapshot_adapter
from scaleup.models.beside import Beside, base_of
from scaleup.models.frozen import as_reference, switch_dropout_off
from scaleup.models.heads import HiddenHead, has_plain_head, swap_head
from scaleup.train.token_head import TokenQuery, TokenStats, swap_token_head, token_stats

Role = Literal["policy", "reference", "generate", "supervised"]


class Policy(Beside):
    """Joins a causal or encoder-decoder model with a value head and its frozen reference."""

    trained_part = "policy"
    frozen_part = "reference"

    def __init__(
        self,
        model: Any,
        temperature: float,
        value_model: Literal["head", "separate"] | None = "head",
        has_reference: bool = True,
        adapter_is_new: bool = True,
    ) -> None:
        """Take the model as it is now for the reference, where there is one: a frozen copy of it; of an adapter that
        was trained before, a copy of the adapter alone; of a new adapter, which changes nothing yet, the model without
        it. Without a `value_model` there is neither a value head nor a trunk for it."""
        super().__init__()
        switch_dropout_off(model)
        base = base_of(model)
        names = inspect.signature(type(base).forward).parameters
        self._takes_positions = "position_ids" in names
        self.temperature = temperature
        self.config = base.config
        self.value_trunk = _trunk(model) if value_model == "separate" else None
        swap_token_head(model)
        self.policy = model
        self.has_reference = has_reference
        copies = has_reference and not is_adapted(model)
        self.reference = deepcopy(model).requires_grad_(False) if copies else None
        self._has_start = has_reference and is_adapted(model) and not adapter_is_new
        if self._has_start:
            snapshot_adapter(model)
        self.value_head = None if value_model is None else nn.Linear(base.config.get_text_config().hidden_size, 1)
        if self.value_head is not None:
            nn.init.zeros_(self.value_head.weight)  # the first advantages are then those of the rewards alone
            nn.init.zeros_(self.value_head.bias)

    @property
    def is_seq2seq(self) -> bool:
        return bool(self.config.is_encoder_decoder)

    @property
    def has_values(self) -> bool:
        return self.value_head is not None

    def forward(self, role: Role, **inputs: Any) -> Any:
        """Run one of four forward passes; all go through here, because engines gather weights around it.

        policy     -> log-probabilities and entropies in nats, and values or None, (B, T) each; entropies have a
                      gradient if `learns_entropy`
        reference  -> log-probabilities (B, T) in nats
        generate   -> token ids, by Transformers' own `generate`
        supervised -> log-probabilities (B, S) in nats of `labels` (B, S) at their `places`, at temperature 1"""
        if role == "generate":
            return base_of(self.policy).generate(**inputs)  # PEFT's would put the model's own settings back
        if role == "reference":
            arranged, query = self._model_inputs(inputs)
            with as_reference(self.policy, self.reference, self._has_start):
                return token_stats(self.reference or self.policy, arranged, query).logprobs
        if role == "supervised":
            return self._supervised(**inputs)
        learns_entropy = inputs.pop("learns_entropy", False)
        arranged, query = self._model_inputs(inputs)
        query = replace(query, learns_entropy=learns_entropy, wants_hidden=self.has_values and self.value_trunk is None)
        stats = token_stats(self.policy, arranged, query)
        values = self._values(stats, arranged, query, inputs["response_mask"]) if self.has_values else None
        return stats.logprobs, stats.entropies, values

    def _supervised(self, labels: torch.Tensor, places: Places, **inputs: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities (B, S) of `labels` at their places, 0 elsewhere."""
        query = TokenQuery(0, labels.clamp(min=0), places.flat, wants_hidden=self.has_values)
        stats = token_stats(self.policy, inputs, query)
        if self.value_head is None:
            return stats.logprobs
        # ZeRO-3 adds to the last step's gradient where a parameter has none in a step's first backward pass
        assert stats.hidden is not None
        values = self.value_head(stats.hidden.to(self.value_head.weight.dtype)).float()
        return stats.logprobs + 0.0 * values.sum()

    def _values(
        self, stats: TokenStats, arranged: dict[str, torch.Tensor], query: TokenQuery, mask: torch.Tensor
    ) -> torch.Tensor:
        """Return values (B, T), 0 outside of the mask, from the policy's hidden states before each token, or from those
        of the value trunk."""
        hidden = stats.hidden
        if self.value_trunk is not None:
            whole = self.value_trunk(**arranged, use_cache=False).logits
            hidden = whole[:, query.first : query.first + query.tokens.shape[1]]
        assert hidden is not None and self.value_head is not None
        values = self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1).float()
        return torch.where(mask, values, 0.0)

    def _model_inputs(self, inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], TokenQuery]:
        """Return the model's own arguments, and the columns that predict the responses, from prompt_ids, prompt_mask
        (B, P), response_ids, response_mask (B, T), response_places (N,).

        A causal model's prompts are padded on the left, so that all responses start in one column. In an
        encoder-decoder model the decoder's column t predicts token t."""
        prompt, prompt_mask = inputs["prompt_ids"], inputs["prompt_mask"]
        response, mask = inputs["response_ids"], inputs["response_mask"]
        if self.is_seq2seq:
            start = response.new_full((len(response), 1), self.config.decoder_start_token_id)
            decoder = torch.cat([start, response[:, :-1]], dim=1)
            arranged = {"input_ids": prompt, "attention_mask": prompt_mask, "decoder_input_ids": decoder}
            return arranged, TokenQuery(0, response, inputs["response_places"], self.temperature)
        attention = torch.cat([prompt_mask, mask.to(prompt_mask.dtype)], dim=1)
        arranged = {"input_ids": torch.cat([prompt, response], dim=1), "attention_mask": attention}
        if self._takes_positions:
            arranged["position_ids"] = (attention.cumsum(dim=1) - 1).clamp(min=0)
        return arranged, TokenQuery(prompt.shape[1] - 1, response, inputs["response_places"], self.temperature)


def policy_of(
    model: Any, settings: PolicyGradient, temperature: float, has_reference: bool, adapter_is_new: bool
) -> Policy:
    """Return the policy that an algorithm with these settings trains: only PPO has values."""
    value_model = settings.value_model if isinstance(settings, PPOAlgorithm) else None
    return Policy(model, temperature, value_model, has_reference, adapter_is_new)


def _trunk(model: Any) -> Any:
    """Return a copy of a model whose head returns hidden states, and whose other weights are trained if the model's
    are."""
    copy = deepcopy(model)
    if not has_plain_head(copy):
        what = f"the head of {type(model).__name__} is not plain, so its trunk cannot be separated"
        raise ScaleupError.of("value_model", what, "use head")
    head = copy.get_output_embeddings()
    swap_head(head, HiddenHead)
    if head.weight is not copy.get_input_embeddings().weight:
        head.requires_grad_(False)  # it is never used
    return copy
