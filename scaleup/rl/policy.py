"""The model that PPO trains: policy, value head and reference in one module, so that one engine wraps, shards and saves
them together."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import nn

from scaleup.errors import ScaleupError
from scaleup.models.adapters import as_at_start, is_adapted, keep_start
from scaleup.rl.policy_head import Asked, HiddenHead, Seen, ask_head, look
from scaleup.train.head_loss import returned_as_is

Role = Literal["policy", "reference", "generate"]


class Policy(nn.Module):
    """A causal or encoder-decoder model with values. What is not trained, the reference above all, is frozen in it."""

    def __init__(
        self, model: Any, temperature: float, separate_value: bool = False, adapter_is_new: bool = True
    ) -> None:
        """The reference is what the model is now: a frozen copy of it, of an adapter that was trained before a copy of
        that alone, and of a new one, which changes nothing yet, the model without it."""
        super().__init__()
        _switch_dropout_off(model)
        base = base_of(model)
        names = inspect.signature(type(base).forward).parameters
        self._takes_positions = "position_ids" in names
        self.temperature = temperature
        self.config = base.config
        self.value_trunk = _trunk(model) if separate_value else None
        ask_head(model)
        self.policy = model
        self.reference = None if is_adapted(model) else deepcopy(model).requires_grad_(False)
        self._has_start = is_adapted(model) and not adapter_is_new
        if self._has_start:
            keep_start(model)
        self.value_head = nn.Linear(base.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)  # the first advantages are then those of the rewards alone
        nn.init.zeros_(self.value_head.bias)

    @property
    def is_seq2seq(self) -> bool:
        return bool(self.config.is_encoder_decoder)

    def forward(self, role: Role, **inputs: Any) -> Any:
        """Everything goes through here, so that engines which gather weights do so for each of the three.

        policy     -> Seen's log-probabilities and entropies, and values, (B, T) each
        reference  -> log-probabilities (B, T)
        generate   -> token ids, by Transformers' own `generate`"""
        if role == "generate":
            return base_of(self.policy).generate(**inputs)  # PEFT's would put the model's own settings back
        if role == "reference":
            with self._as_reference():
                return self._look(self.reference or self.policy, inputs).logprobs
        seen = self._look(self.policy, inputs)
        return seen.logprobs, seen.entropies, self._values(seen, inputs)

    def train(self, mode: bool = True) -> Policy:
        """The reference and its kind stay in evaluation mode."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self

    def _look(self, model: Any, inputs: dict[str, torch.Tensor]) -> Seen:
        return look(model, *self._arranged(inputs))

    def _values(self, seen: Seen, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = seen.hidden
        if self.value_trunk is not None:
            arranged, asked = self._arranged(inputs)
            whole = self.value_trunk(**arranged, use_cache=False).logits
            hidden = whole[:, asked.first : asked.first + asked.tokens.shape[1]]
        values = self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1).float()
        return torch.where(inputs["response_mask"], values, 0.0)

    def _arranged(self, inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Asked]:
        """prompt_ids, prompt_mask (B, P), response_ids, response_mask (B, T) -> the model's own arguments, and the
        columns that predict the responses.

        A causal model's prompts are padded on the left, so that all responses start in one column. In an
        encoder-decoder model the decoder's column t predicts token t."""
        prompt, prompt_mask = inputs["prompt_ids"], inputs["prompt_mask"]
        response, mask = inputs["response_ids"], inputs["response_mask"]
        if self.is_seq2seq:
            start = response.new_full((len(response), 1), self.config.decoder_start_token_id)
            decoder = torch.cat([start, response[:, :-1]], dim=1)
            arranged = {"input_ids": prompt, "attention_mask": prompt_mask, "decoder_input_ids": decoder}
            return arranged, Asked(0, response, mask, self.temperature)
        attention = torch.cat([prompt_mask, mask.to(prompt_mask.dtype)], dim=1)
        arranged = {"input_ids": torch.cat([prompt, response], dim=1), "attention_mask": attention}
        if self._takes_positions:
            arranged["position_ids"] = (attention.cumsum(dim=1) - 1).clamp(min=0)
        return arranged, Asked(prompt.shape[1] - 1, response, mask, self.temperature)

    def _as_reference(self) -> AbstractContextManager[Any]:
        if self.reference is not None:
            return nullcontext()
        return as_at_start(self.policy) if self._has_start else self.policy.disable_adapter()

    # What engines ask a model for: how to divide it into layers, and which embeddings it shares.

    @property
    def _no_split_modules(self) -> Any:
        return self.policy._no_split_modules

    def get_input_embeddings(self) -> Any:
        return self.policy.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.policy.get_output_embeddings()


def base_of(model: Any) -> Any:
    """Transformers' own model, in which an adapter's layers are."""
    return model.get_base_model() if is_adapted(model) else model


def _trunk(model: Any) -> Any:
    """A copy whose head gives hidden states, and whose other weights are trained where the model's are."""
    copy = deepcopy(model)
    head = copy.get_output_embeddings()
    if type(head) is not nn.Linear or not returned_as_is(copy, head):
        what = f"the head of {type(model).__name__} is not plain, so its trunk cannot be had apart"
        raise ScaleupError.of("ppo.value_model", what, "use head")
    embeddings = copy.get_input_embeddings()
    head.__class__ = HiddenHead
    if head.weight is not embeddings.weight:
        head.requires_grad_(False)  # it is never used
    return copy


def _switch_dropout_off(model: nn.Module) -> None:
    """In training mode too, which recomputation of activations needs: a ratio of probabilities with dropout in it would
    be noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
