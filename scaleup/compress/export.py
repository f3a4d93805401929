"""This module takes a config's model and writes a folder that plain Transformers loads, proved to be the same model by
its logits.

An adapter is merged into the unquantized base, whatever it was trained on: merging into quantized weights would round
the sum once more (docs/design/adapters.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from scaleup.compress.probes import Probe, difference, logits_on
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.export import ExportConfig
from scaleup.errors import ScaleupError
from scaleup.models.adapted import load_base, load_finished
from scaleup.models.adapters import load_adapter
from scaleup.models.builtin import say_untied
from scaleup.models.generation import save_tokenizer
from scaleup.models.load import auto_class, first_line
from scaleup.plan.facts import ModelFacts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

T5_LIKE = ("t5", "mt5", "umt5")


@dataclass(frozen=True)
class Check:
    """Holds the probes on which logits are compared, and the largest difference that is taken for none."""

    probes: Sequence[Probe]
    tolerance: float
    device: torch.device
    where: str = "export.tolerance"
    """Is the config key that bounds the difference."""
    done: str = "exported"
    """Names, in errors, what is not done where the difference is too large."""

    def logits(self, model: Any) -> list[torch.Tensor]:
        """Returns a model's logits on each probe, on the CPU in float32."""
        return logits_on(model, self.probes, self.device)

    def equal(self, model: Any, true: Sequence[torch.Tensor], what: str, remedy: str) -> float:
        """Returns how far a model's logits are from the true ones, as a share of the largest. Raises ScaleupError at
        `where` if that is more than `tolerance`."""
        moved = difference(self.logits(model), true)
        if not moved <= self.tolerance:  # nor where it is not a number
            what = f"{what} by {moved:.1e} of the largest logit, more than {self.tolerance:g}: nothing was {self.done}"
            raise ScaleupError.of(self.where, what, remedy)
        return moved


def whole_model(config: ExportConfig, facts: ModelFacts, check: Check) -> tuple[Any, dict[str, float]]:
    """Returns the model to write, in float32, with the adapter that `model.path` names merged into it; of an encoder
    that is no classifier, the encoder. With it come how far the adapter moves logits of its base (`adapter`), and how
    far merging moves those of the two (`merged`).

    Raises ScaleupError if the merged model is another one, or the adapter cannot be merged."""
    base = load_base(config.model, facts, None, "no", check.device).to(check.device)
    if facts.adapter is None:
        is_encoder = facts.task == "sequence_classification" and not facts.labels
        return (base.base_model if is_encoder else base), {}
    plain = check.logits(base)
    adapted = load_adapter(base, Path(facts.adapter), trainable=False)
    true = check.logits(adapted)
    merged = _merge(adapted)
    remedy = "evaluate the adapter as it is, or raise export.tolerance if that is near enough"
    moved = check.equal(merged, true, "merging the adapter moves logits", remedy)
    return merged, {"adapter": difference(true, plain), "merged": moved}


def from_trained(
    config: ExportConfig, facts: ModelFacts, check: Check, true: Sequence[torch.Tensor]
) -> dict[str, float]:
    """Returns how far the exported logits are from those of the base in 8 or 4 bits with the adapter, as it was
    trained."""
    if config.export.trained_in is None:
        return {}
    trained = load_finished(config.model, facts, config.export.trained_in, "no", check.device)
    return {"trained": difference(check.logits(trained), true)}


def write_folder(
    model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype, max_shard_size: str, check: Check
) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Writes weights in `dtype`, config and tokenizer. Returns how far rounding moved the logits, and the logits that
    the written weights must give: in float32, so that only weights are compared, not arithmetic."""
    true, metrics = check.logits(model), {}
    if dtype != torch.float32:
        cast(model, dtype)
        cast(model, torch.float32)
        exact, true = true, check.logits(model)
        metrics = {"rounded": difference(true, exact)}
        cast(model, dtype)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    save_tokenizer(tokenizer, folder)
    head = model.get_output_embeddings()
    if model.config.model_type in T5_LIKE and head is not None and head.weight is not model.shared.weight:
        say_untied(folder / "config.json")  # this version of transformers sees it in the weights, others read it here
    return metrics, true


def cast(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Casts the parameters alone, in place: `to` would round what a model computes for itself as well, its rotary
    frequencies for example."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def read_back(
    config: ModelConfig, facts: ModelFacts, folder: Path, check: Check, true: Sequence[torch.Tensor]
) -> dict[str, float]:
    """Loads the written folder with plain Transformers; returns how far its logits are from the true ones. Raises
    ScaleupError if it is another model."""
    options = {"dtype": torch.float32, "trust_remote_code": config.trust_remote_code}
    model = auto_class(facts.task).from_pretrained(folder, **options).to(check.device)
    remedy = "report this: the architecture is not written as it is held"
    return {"reloaded": check.equal(model, true, "reading the written folder again moves logits", remedy)}


def stored_dtype(config: ExportConfig, facts: ModelFacts) -> str:
    """Returns the name of the dtype to write; where the config says auto, that of the files that the weights come
    from."""
    return dtype_of_files(config.model, facts) if config.export.dtype == "auto" else config.export.dtype


def dtype_of_files(model: ModelConfig, facts: ModelFacts) -> str:
    """Returns the name of the dtype in which the weights at `facts.location` are stored; float32 where their config
    names none."""
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(facts.location, trust_remote_code=model.trust_remote_code).dtype
    return next((name for name, dtype in DTYPES.items() if stored in (dtype, name)), "float32")


def _merge(adapted: Any) -> Any:
    base = adapted.get_base_model()
    was_tied = base.config.tie_word_embeddings
    _untie(base)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError) as error:
        what = f"the adapter cannot be merged: {first_line(error)}"
        raise ScaleupError.of("model.path", what, "evaluate the adapter as it is") from error
    if merged.config.is_encoder_decoder:
        # PEFT says of a model whose head has moved that nothing is tied, but encoder and decoder still share embeddings
        merged.config.tie_word_embeddings = was_tied
    return merged


def _untie(base: Any) -> None:
    """Gives the head weights of its own where an adapter moves it, or the embeddings that it shares weights with:
    merged into shared weights it would move both."""
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    if not (hasattr(head, "base_layer") or hasattr(embeddings, "base_layer")):
        return
    own, shared = (getattr(module, "base_layer", module) for module in (head, embeddings))
    if own is not None and own.weight is shared.weight:
        own.weight = torch.nn.Parameter(own.weight.detach().clone(), requires_grad=False)
