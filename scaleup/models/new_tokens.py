"""This module gives a model new tokens: the tokenizer adds them, and the embeddings and the head have a row for each.

A new row starts as the mean of the rows of all tokens before it, in embeddings and head alike, so that a new token is
about as likely as an average one (Hewitt 2021, "Initializing new word embeddings for pretrained language models").
Transformers' `resize_token_embeddings` draws from a normal distribution around that mean, of a covariance of 1e-9 times
that of the rows: here it is the mean itself, on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from scaleup.distributed.deferred import Deferred, deferred, value_of
from scaleup.errors import Problem, ScaleupError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 1024
"""Counts the rows that are added up at a time, in float64."""
BIAS = "final_logits_bias"
"""Names what BART and its kin add to the logits: a buffer, which the new tokens extend by zeros."""


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str], where: str) -> None:
    """Adds tokens, which are found in a text as they are written, whatever the tokenizer makes of the rest.

    Raises ScaleupError at `where` for each that the tokenizer has already."""
    if not tokens:
        return
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    if there := [token for token in tokens if token in known]:
        remedy = "leave it out"
        raise ScaleupError(
            [Problem(where, f"{token!r} is token {known[token]} of the tokenizer", remedy) for token in there]
        )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])


@torch.no_grad()
def grow_vocabulary(model: Any, size: int, ids: Sequence[int] = ()) -> None:
    """Gives the embeddings and the head of a model of Transformers `size` rows, if they have fewer. Those that are new,
    and those of the new tokens `ids`, for which a padded vocabulary may have had rows, are the mean of the rows of the
    tokens before them. What shares weights goes on to share them; deferred weights stay deferred.

    Raises ScaleupError at `model.new_tokens` for a model that keeps more than embeddings and a head for a token."""
    tables = _tables(model)
    before = len(tables[0])
    size, known = max(size, before), min((*ids, before))
    grown = {table: _resized(table, size, known, ids) for table in tables}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter in grown:
                module._parameters[name] = grown[parameter]
                for count in ("num_embeddings", "out_features"):
                    if hasattr(module, count):
                        setattr(module, count, size)
        if getattr(module, "vocab_size", None) == before:
            module.vocab_size = size
        config = getattr(module, "config", None)
        for part in (config, config.get_text_config()) if config is not None else ():
            if getattr(part, "vocab_size", None) == before:
                part.vocab_size = size
    if (bias := model._buffers.get(BIAS)) is not None:
        zeros = torch.zeros(1, size - before, dtype=bias.dtype, device=bias.device)
        model._buffers[BIAS] = torch.cat([value_of(bias), zeros], dim=1)


def _tables(model: Any) -> list[nn.Parameter]:
    """Returns the parameters that have a row for each token, shared ones once, first those of the input embedding."""
    from transformers import PreTrainedModel

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    holders = [embedding, *([model.get_decoder().get_input_embeddings()] if model.config.is_encoder_decoder else [])]
    is_plain = all(isinstance(each, nn.Embedding) for each in holders) and isinstance(head, nn.Linear | None)
    is_usual = type(model).resize_token_embeddings is PreTrainedModel.resize_token_embeddings or hasattr(model, BIAS)
    if not (is_plain and is_usual):
        what = f"{type(model).__name__} keeps more for a token than a row of embeddings and head"
        raise ScaleupError.of("model.new_tokens", what, "leave them out")
    tables = [each.weight for each in holders]
    if head is not None:
        tables += [table for table in (head.weight, head.bias) if table is not None]
    return list(dict.fromkeys(tables))


def token_tables(model: Any) -> dict[str, nn.Parameter]:
    """Returns the weights that have a row for each token, by the name of every module that has one; first the input
    embedding's."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    weights = [embedding.weight, *([head.weight] if head is not None else [])]
    named = dict(model.named_modules(remove_duplicate=False))
    holders = {name: module for name, module in named.items() if _has_one_of(module, weights)}
    first = next(name for name, module in holders.items() if module is embedding)
    return {name: holders[name].weight for name in (first, *(name for name in holders if name != first))}


def own_tables(tables: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Returns each of `token_tables` once, by the name of its first module."""
    first: dict[nn.Parameter, str] = {}
    for name, table in tables.items():
        first.setdefault(table, name)
    return {name: table for table, name in first.items()}


def trained_rows(tables: Mapping[str, nn.Parameter], ids: Sequence[int], settings: Any) -> dict[str, list[int]] | None:
    """Returns PEFT's `trainable_token_indices`, so that a LoRA of these settings trains the rows of `ids` in each of
    `token_tables` that it does not train whole; None if it trains all of them whole.

    Raises ScaleupError at `adapter.target_modules` and `adapter.modules_to_save` for what would part the rows."""
    own = own_tables(tables)
    targets = [] if isinstance(settings.target_modules, str) else settings.target_modules or []
    if adapted := [name for name in tables if any(f".{name}".endswith(f".{target}") for target in targets)]:
        what = f"names {' and '.join(adapted)}, whose rows of new tokens are learned by themselves"
        remedy = "leave it out" + (", or name it in adapter.modules_to_save" if len(own) == len(tables) else "")
        raise ScaleupError.of("adapter.target_modules", what, remedy)
    kept = [name for name in tables if name.endswith(tuple(settings.modules_to_save or ()))]
    if kept and len(own) < len(tables):
        what = f"names {' and '.join(kept)}, whose weights are shared: only one of those that share them would learn"
        raise ScaleupError.of("adapter.modules_to_save", what, "leave it out: rows of new tokens are learned without")
    return {name: list(ids) for name in own if name not in kept} or None


def check_rows_are_trained(adapted: Any, tables: Mapping[str, nn.Parameter]) -> None:
    """Raises ScaleupError at `adapter.type` if PEFT does not train the rows of every module of `token_tables`, tied to
    one another where weights are shared and nowhere else: it goes by `tie_word_embeddings`."""
    from peft.utils.other import TrainableTokensWrapper

    base, own = adapted.get_base_model(), own_tables(tables)
    for name in tables:
        module = base.get_submodule(name)
        is_whole = not isinstance(module, TrainableTokensWrapper) and len(own) == len(tables)
        has_bias = getattr(module, "bias", None) is not None  # PEFT leaves it out of the product
        if is_whole or (
            isinstance(module, TrainableTokensWrapper)
            and not has_bias
            and (module.token_adapter.tied_adapter is None) == (name in own)
        ):
            continue
        what = f"lora would not learn the rows of new tokens in {name} of {type(base).__name__}"
        raise ScaleupError.of("adapter.type", what, "train the whole model")


def _has_one_of(module: nn.Module, weights: Sequence[nn.Parameter]) -> bool:
    return any(module._parameters.get("weight") is weight for weight in weights)


def _resized(table: nn.Parameter, size: int, known: int, ids: Sequence[int]) -> nn.Parameter:
    read = partial(_with_rows, table, size, known, list(ids))
    if isinstance(table, Deferred):
        shape = (size, *table.shape[1:])
        return nn.Parameter(deferred(read, shape, table.dtype, table.device), table.requires_grad)
    return nn.Parameter(read(), table.requires_grad)


@torch.no_grad()
def _with_rows(table: nn.Parameter, size: int, known: int, ids: list[int]) -> torch.Tensor:
    """Returns the values of a table (V, ...) with `size` rows, of which the new ones and those at `ids` are the mean of
    the first `known`."""
    old = value_of(table)
    rows = old.new_empty(size, *old.shape[1:])
    rows[: len(old)] = old
    total = torch.stack([part.sum(0, dtype=torch.float64) for part in old[:known].split(ROWS)]).sum(0)
    mean = (total / known).to(old.dtype)
    rows[len(old) :] = mean
    rows[ids] = mean
    return rows
