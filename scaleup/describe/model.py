"""A model's shell and its tokenizer go in; what the plan must know of them comes out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from scaleup.config.schema import ModelConfig
from scaleup.describe.shell import Shell, is_classifier, is_encoder, shell_of
from scaleup.errors import ScaleupError
from scaleup.models.beside import base_of
from scaleup.models.classifier import label_names, pooling_of, problem_of
from scaleup.plan.facts import Experts, ModelFacts, Tensors
from scaleup.plan.model_path import tokenizer_beside

EXPERT_COUNTS = (("num_local_experts", "num_experts", "n_routed_experts"), ("num_experts_per_tok",))
"""Names the settings that tell how many experts a layer has, and how many a token goes through."""

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def model_facts(model: ModelConfig, where: str = "model", shell: Shell | None = None) -> ModelFacts:
    """Return everything the plan knows of `model`, whose shell may be at hand. Raises ScaleupError as `shell_of`
    does."""
    from scaleup.models.soft_prompts import num_virtual_tokens

    shell = shell or shell_of(model, where)
    parameters = list(shell.model.parameters())
    text = shell.config.get_text_config()
    tokenizer, beside = shell.tokenizer, tokenizer_beside(shell.adapter) if shell.adapter else None
    if shell.task == "sequence_classification":
        _check_pooling(shell, model, where)
        _check_tokens(shell, tokenizer, where)
    return ModelFacts(
        location=shell.location,
        task=shell.task,
        model_type=shell.config.model_type,
        architecture=shell.architecture,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_trainable_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        tensors=_tensors(parameters, shell.quantized),
        largest_block=shell.largest_block,
        vocab_size=text.vocab_size,
        stored_vocab_size=shell.stored_vocab_size,
        new_token_ids=tuple(tokenizer.convert_tokens_to_ids(model.new_tokens)),
        hidden_size=getattr(text, "hidden_size", 0),
        num_layers=_num_layers(text),
        layers=shell.layers,
        pad_token=tokenizer.pad_token,
        eos_token=tokenizer.eos_token,
        max_positions=_positions(shell),
        **_head(shell),
        num_virtual_tokens=num_virtual_tokens(shell.model),
        tokenizer_size=len(tokenizer),
        vocabulary=_hash_of_ids(tokenizer),
        has_chat_template=bool(tokenizer.chat_template),
        adapter=str(shell.adapter) if shell.adapter else None,
        tokenizer_location=str(beside) if beside else None,
        attention_width=_attention_width(text),
        num_lookup_parameters=shell.num_lookup_parameters,
        experts=_experts(shell),
    )


def _experts(shell: Shell) -> Experts | None:
    """Return how a model's experts are routed, by the names that Transformers' configs have for that."""
    text, base = shell.config.get_text_config(), base_of(shell.model)
    held = sum(parameter.numel() for name, parameter in base.named_parameters() if ".experts." in name)
    count, chosen = (
        next((number for name in names if (number := getattr(text, name, None))), None) for names in EXPERT_COUNTS
    )
    if not held or not count:
        return None
    coefficient = getattr(base, "router_aux_loss_coef", None)
    return Experts(
        num_experts=count,
        num_experts_per_tok=chosen or 1,
        num_parameters=held,
        router_aux_loss_coef=coefficient or None,
    )


def _num_layers(text: PreTrainedConfig) -> int:
    """Return the number of layers; of an encoder-decoder those of the decoder."""
    names = ("num_decoder_layers", "decoder_layers", "num_hidden_layers") if text.is_encoder_decoder else ()
    return next((count for name in (*names, "num_hidden_layers") if (count := getattr(text, name, None))), 0)


def _hash_of_ids(tokenizer: PreTrainedTokenizerBase) -> str:
    ids = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]))
    return hashlib.sha256(ids.encode()).hexdigest()[:16]


def _head(shell: Shell) -> dict[str, Any]:
    """Return the facts of a classifier's head; one of a single score beside its files has no labels."""
    if shell.task != "sequence_classification":
        return {}
    names, problem = label_names(shell.config), problem_of(shell.config)
    is_new = not is_classifier(shell.config)
    return {
        "labels": () if is_new else names,
        "new_labels": names if is_new and (len(names) > 1 or problem is not None) else (),
        "problem": problem,
        "pooling": pooling_of(base_of(shell.model)),
    }


def _positions(shell: Shell) -> int | None:
    """Return the longest row that position embeddings allow. RoBERTa's begin behind the place of its padding."""
    import torch

    limit = getattr(shell.config.get_text_config(), "max_position_embeddings", None)
    for name, module in base_of(shell.model).named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return limit if limit is None or module.padding_idx is None else limit - module.padding_idx - 1
    return limit


def _check_pooling(shell: Shell, model: ModelConfig, where: str) -> None:
    """Check that scores are read where padding cannot matter: encoders pool for themselves, but a decoder that does
    might take padding for the end of a row. Raises ScaleupError at `{where}.path`."""
    if pooling_of(base_of(shell.model)) == "whole" and not is_encoder(shell.config):
        what = f"{model.path!r} ({shell.config.model_type}) reads its scores in a way that is not known here"
        raise ScaleupError.of(f"{where}.path", what, "name an encoder like bert, or a decoder like llama or gpt2")


def _check_tokens(shell: Shell, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Check for the tokens that scoring needs. Raises ScaleupError at `{where}.tokenizer`."""
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    remedy = "use the model's own tokenizer, or one with these tokens"
    if shell.config.is_encoder_decoder and (eos is None or eos != shell.config.eos_token_id):
        what = f"{shell.architecture} scores at its eos token {shell.config.eos_token_id}, the tokenizer's is {eos}"
        raise ScaleupError.of(f"{where}.tokenizer", what, remedy)
    if pad is None and eos is None:
        what = "has neither a pad nor an eos token: texts of several lengths make no batch"
        raise ScaleupError.of(f"{where}.tokenizer", what, remedy)


def _attention_width(text: PreTrainedConfig) -> int:
    """Return heads times their size, summed over layers; an encoder-decoder's decoder attends twice, and is not this
    deep."""
    heads, hidden = getattr(text, "num_attention_heads", None), getattr(text, "hidden_size", None)
    if not heads or not hidden:
        return 0
    size = getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or hidden // heads
    return int(text.num_hidden_layers * heads * size)


def _tensors(
    parameters: Iterable[torch.nn.Parameter], quantized: Mapping[torch.nn.Parameter, tuple[int, ...]]
) -> tuple[Tensors, ...]:
    """Group parameters by shape, the largest first."""
    counts = Counter((tuple(quantized.get(p, p.shape)), p.requires_grad, p in quantized) for p in parameters)
    groups = [
        Tensors(shape=shape, count=count, trainable=is_on, quantized=is_low)
        for (shape, is_on, is_low), count in counts.items()
    ]
    return tuple(sorted(groups, key=lambda tensors: (-tensors.elements, tensors.shape)))
