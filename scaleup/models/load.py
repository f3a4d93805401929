"""This module loads the tokenizer and the model of a config, from safetensors only, and only if the files hold every
weight."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import torch

from scaleup.config.schema import ModelConfig
from scaleup.distributed.deferred import fill, fill_buffers
from scaleup.errors import ScaleupError
from scaleup.models.classifier import PROBLEM_TYPES, head_settings, is_of_head, pool_by_mask
from scaleup.models.new_tokens import add_tokens, grow_vocabulary
from scaleup.models.quantized import quantized_when_read
from scaleup.models.sources import absence, materialize_tokenizer
from scaleup.models.stored import deferred_files, mapped_files
from scaleup.plan.facts import ModelFacts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


PLAIN = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Lists tokenizer classes whose tokenizer is what tokenizer.json says and nothing else."""


def load_tokenizer(model: ModelConfig, location: str, where: str = "model") -> PreTrainedTokenizerBase:
    """Loads the tokenizer of `model.tokenizer`, or else the one at `location`, with the pad and eos tokens it came
    with, and the new tokens of the config.

    Raises ScaleupError at `{where}.tokenizer` or `{where}.path` if there is none, and at `{where}.new_tokens`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    key, revision = f"{where}.path", model.revision
    if model.tokenizer is not None:
        key, revision = f"{where}.tokenizer", None  # the revision is one of the model's repository
        location = materialize_tokenizer(model.tokenizer, key)
    remedy = f"set {where}.tokenizer to the folder or hub name of this model's tokenizer"
    options = {"revision": revision or "main", "trust_remote_code": model.trust_remote_code}
    try:
        declared = get_tokenizer_config(location, **options)
        # AutoTokenizer replaces what some folders (a model_type of qwen2, say) declare by a class of its own choice.
        is_plain = declared.get("tokenizer_class") in PLAIN and "auto_map" not in declared
        tokenizer = (PreTrainedTokenizerFast if is_plain else AutoTokenizer).from_pretrained(location, **options)
    except Exception as error:  # transformers and tokenizers raise anything from OSError to a bare Exception here
        what = absence(location, error) or f"cannot load the tokenizer of {location}: {first_line(error)}"
        raise ScaleupError.of(key, what, remedy) from error
    # Without tokenizer files transformers makes up an empty tokenizer for some model types, and says nothing.
    if len(tokenizer.get_vocab()) < len(tokenizer.added_tokens_decoder) + 2:
        raise ScaleupError.of(key, f"{location} has no tokenizer files", remedy)
    add_tokens(tokenizer, model.new_tokens, f"{where}.new_tokens")
    return tokenizer


def load_model(
    model: ModelConfig,
    facts: ModelFacts,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    quantized: Mapping[str, Any] | None = None,
    deferred: bool = False,
) -> PreTrainedModel:
    """Loads the model at `facts.location` for `facts.task`, on the CPU in `dtype` (auto: that of its files); with the
    options of `quantized.loading_options`, on their device. It keeps the layers that the facts name, and has the rows
    of embeddings that they count. A sequence classifier's head may be missing where the facts have no labels: it is
    drawn, with their new labels or one output. If `deferred`, parameters are read when an engine prepares the model.

    Raises ScaleupError at `model.path` if a weight is missing, has another shape or cannot be read."""
    from safetensors import SafetensorError

    is_new = facts.task == "sequence_classification" and not facts.labels
    try:
        with _weights_left_in_files(quantized):
            loaded, info = auto_class(facts.task).from_pretrained(
                facts.location,
                dtype=dtype,
                use_safetensors=True,
                revision=base_revision(model, facts),
                trust_remote_code=model.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, beside the missing ones
                **(quantized or {}),
                **_head(facts),
                **_attention(model),
            )
    except (OSError, SafetensorError) as error:
        what = f"cannot read the weights of {facts.location}: {first_line(error)}"
        remedy = "the model needs *.safetensors files beside its config.json"
        raise ScaleupError.of("model.path", what, remedy) from error
    missing = sorted(key for key in info["missing_keys"] if not (is_new and is_of_head(key)))
    mismatched = sorted(f"{key} ({list(there)}, not {list(own)})" for key, there, own in info["mismatched_keys"])
    _refuse(facts, missing, mismatched)
    if facts.task == "sequence_classification":
        pool_by_mask(loaded)
    if facts.new_token_ids or facts.stored_vocab_size is not None:
        grow_vocabulary(loaded, facts.vocab_size, facts.new_token_ids)
    if facts.layers is not None:
        from scaleup.models.surgery import keep_layers

        keep_layers(loaded, facts.layers)
    fill_buffers(loaded)
    if not deferred:
        fill(loaded)
    return loaded


def _weights_left_in_files(quantized: Mapping[str, Any] | None) -> AbstractContextManager[None]:
    """Returns the context of loading with these options: weights are read when they are used, or, as bitsandbytes has
    scales of 8-bit matrices elsewhere too, these at once, each by itself."""
    if quantized is None:
        return deferred_files()
    in_4_bits = getattr(quantized["quantization_config"], "load_in_4bit", False)  # torchao's says nothing of it
    return quantized_when_read() if in_4_bits else mapped_files()


def _head(facts: ModelFacts) -> dict[str, Any]:
    """Returns options of loading for a classifier's head: of one beside the files its labels, or one score."""
    if facts.task != "sequence_classification":
        return {}
    if not facts.labels:
        return head_settings(facts.new_labels, facts.problem)
    return {"problem_type": PROBLEM_TYPES[facts.problem]} if facts.problem else {}


def _attention(model: ModelConfig) -> dict[str, Any]:
    return {} if model.attn_implementation is None else {"attn_implementation": model.attn_implementation}


def auto_class(task: str) -> Any:
    """Returns Transformers' class that loads or builds a model for a task."""
    import transformers

    names = {"causal_lm": "CausalLM", "seq2seq_lm": "Seq2SeqLM", "sequence_classification": "SequenceClassification"}
    return getattr(transformers, f"AutoModelFor{names[task]}")


def base_revision(model: ModelConfig, facts: ModelFacts) -> str:
    """Returns the revision of the base model: a config's revision is one of the adapter's repository where the path
    names an adapter."""
    return "main" if facts.adapter or model.revision is None else model.revision


def enable_gradient_checkpointing(model: PreTrainedModel, **options: bool) -> None:
    """Makes the backward pass recompute activations (not reentrant: frozen inputs and DDP work unchanged).

    Raises ScaleupError for an architecture that cannot."""
    if not model.supports_gradient_checkpointing:
        what = f"{type(model).__name__} cannot recompute activations"
        raise ScaleupError.of("gradient_checkpointing", what, "set it to false")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False, **options})


def quiet_libraries() -> None:
    """Turns off progress bars, which a log has no use for and of which a terminal has ours; and what users cannot act
    on: that bitsandbytes lacks a kernel it would download, that torchao lacks those of GPUs that are not there, that
    PEFT asks Transformers by an old name, that DeepSpeed, which saving imports, takes the CPU where it is all there
    is."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # DeepSpeed sets its logger's level when it is imported, but leaves filters alone.
    logging.getLogger("DeepSpeed").addFilter(lambda record: not record.getMessage().startswith("Setting accelerator"))
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id to fill batches with: pad if there is one, else eos, else 0. Masks never come from it."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def num_ids_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns one more than the highest id that the tokenizer gives. A model may have more embeddings: padding."""
    return 1 + max(tokenizer.get_vocab().values())


def first_line(error: Exception) -> str:
    """Returns the error in one line, with its class where the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _refuse(facts: ModelFacts, missing: list[str], mismatched: list[str]) -> None:
    """Raises ScaleupError if there are any weights of either kind."""
    faults = [
        *_fault(facts, missing, "is not in its files", "are not in its files"),
        *_fault(facts, mismatched, "has another shape in its files", "have another shape in its files"),
    ]
    if faults:
        remedy = f"check that {facts.location} is whole and is a {facts.architecture}"
        raise ScaleupError.of("model.path", "; ".join(faults), remedy)


def _fault(facts: ModelFacts, names: list[str], of_one: str, of_many: str) -> Iterator[str]:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        subject, fault = ("1 weight", of_one) if len(names) == 1 else (f"{len(names)} weights", of_many)
        yield f"{subject} of {facts.architecture} {fault}: {', '.join(names[:3])}{more}"
