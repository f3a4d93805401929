"""What the plan must know of a model, without loading its weights: built on the meta device.
`train/describe.py` asks, in a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scaleup.config.distill import EveryLayer
from scaleup.config.schema import ModelConfig
from scaleup.errors import ScaleupError
from scaleup.plan.facts import AskedModel, ModelFacts, Tensors
from scaleup.plan.model_path import adapter_base, adapter_folder, saved_settings, tokenizer_beside

from .classifier import pooling_of
from .sources import materialize

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Task = Literal["causal_lm", "seq2seq_lm", "sequence_classification"]
CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True)
class Shell:
    """A model without storage, with what will be trained on top of it, and what was found on the way."""

    location: str
    config: PreTrainedConfig
    task: Task
    model: Any
    architecture: str
    adapter: Path | None
    """The adapter that the path names."""
    quantized: Mapping[torch.nn.Parameter, tuple[int, ...]]
    largest_block: int
    num_lookup_parameters: int
    layers: dict[str, tuple[int, ...]] | None
    """Those that are kept of the files' own, by stack; None: all."""


def shell_of(model: ModelConfig, where: str = "model", config: PreTrainedConfig | None = None) -> Shell:
    """Makes the folder of a package or a built-in model if it is not there yet. `config` takes the place of the one
    found there.

    Raises ScaleupError at `{where}.path`, `.task` or `.trust_remote_code`, and where an adapter does not fit."""
    from .quantized import quantize_shell

    found = materialize(model.path, f"{where}.path")
    adapter = adapter_folder(found)
    location = str(adapter_base(adapter)) if adapter else found
    config = config or _config(model, location, where)
    task = _task(model, config, where, adapter)
    shell = _shell(model, config, task, where)
    _untie(shell, location)
    asked = model if isinstance(model, AskedModel) else AskedModel(**model.model_dump())
    layers = _cut(shell, asked.layers) if asked.layers is not None else None
    sizes = _largest_block(shell), _lookups(shell)
    quantized = quantize_shell(shell, asked.quantization) if asked.quantization else {}
    whole = _adapted(shell, asked, adapter, task) if adapter or asked.adapter else shell
    return Shell(location, shell.config, task, whole, type(shell).__name__, adapter, quantized, *sizes, layers)


def _cut(shell: PreTrainedModel, asked: tuple[int, ...] | EveryLayer) -> dict[str, tuple[int, ...]]:
    """Keep these layers of each stack. Raises ScaleupError at `distill.student_layers`."""
    from .architecture import architecture_of
    from .surgery import keep_layers

    try:
        depths = {stack.name: len(stack.blocks) for stack in architecture_of(shell).stacks}
        if isinstance(asked, EveryLayer):
            kept = {name: tuple(range(0, depth, asked.every)) for name, depth in depths.items()}
        else:
            kept = dict.fromkeys(depths, asked)
        keep_layers(shell, kept)
    except ValueError as error:
        what = f"{shell.config.model_type}: {error}"
        raise ScaleupError.of("distill.student_layers", what, "name layers that the model has") from error
    return kept


def _adapted(shell: PreTrainedModel, asked: AskedModel, adapter: Path | None, task: Task) -> Any:
    import torch

    from .adapters import shell_adapted

    with torch.device("meta"):
        return shell_adapted(shell, asked.adapter, adapter, task)


def model_facts(model: ModelConfig, where: str = "model", shell: Shell | None = None) -> ModelFacts:
    """Everything the plan knows of `model`, whose shell may be at hand.

    Raises ScaleupError as `shell_of` does, and at `{where}.tokenizer`."""
    from .load import load_tokenizer
    from .soft_prompts import num_virtual_tokens

    shell = shell or shell_of(model, where)
    parameters = list(shell.model.parameters())
    text = shell.config.get_text_config()
    beside = tokenizer_beside(shell.adapter) if shell.adapter else None
    tokenizer = load_tokenizer(model, str(beside or shell.location), where)
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
        hidden_size=getattr(text, "hidden_size", 0),
        num_layers=_num_layers(text),
        layers=shell.layers,
        pad_token=tokenizer.pad_token,
        eos_token=tokenizer.eos_token,
        max_positions=_positions(shell),
        labels=_labels(shell),
        pooling=pooling_of(_base(shell.model)) if shell.task == "sequence_classification" else None,
        num_virtual_tokens=num_virtual_tokens(shell.model),
        tokenizer_size=len(tokenizer),
        vocabulary=_hash_of_ids(tokenizer),
        has_chat_template=bool(tokenizer.chat_template),
        adapter=str(shell.adapter) if shell.adapter else None,
        tokenizer_location=str(beside) if beside else None,
        attention_width=_attention_width(text),
        num_lookup_parameters=shell.num_lookup_parameters,
    )


def _num_layers(text: PreTrainedConfig) -> int:
    """Of the decoder, where there is one."""
    names = ("num_decoder_layers", "decoder_layers", "num_hidden_layers") if text.is_encoder_decoder else ()
    return next((found for name in (*names, "num_hidden_layers") if (found := getattr(text, name, None))), 0)


def _hash_of_ids(tokenizer: PreTrainedTokenizerBase) -> str:
    ids = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]))
    return hashlib.sha256(ids.encode()).hexdigest()[:16]


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _labels(shell: Shell) -> tuple[str, ...]:
    if shell.task != "sequence_classification" or not is_classifier(shell.config):
        return ()
    return tuple(str(label) for _, label in sorted(shell.config.id2label.items()))


def _positions(shell: Shell) -> int | None:
    """The longest row that position embeddings allow. RoBERTa's begin behind the place of its padding."""
    import torch

    limit = getattr(shell.config.get_text_config(), "max_position_embeddings", None)
    for name, module in _base(shell.model).named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return limit if limit is None or module.padding_idx is None else limit - module.padding_idx - 1
    return limit


def _check_pooling(shell: Shell, model: ModelConfig, where: str) -> None:
    """Encoders pool for themselves; a decoder that does might take padding for the end of a row."""
    if pooling_of(_base(shell.model)) == "whole" and not _is_encoder(shell.config):
        what = f"{model.path!r} ({shell.config.model_type}) reads its scores in a way that is not known here"
        raise ScaleupError.of(f"{where}.path", what, "name an encoder like bert, or a decoder like llama or gpt2")


def _check_tokens(shell: Shell, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """What scoring needs of a tokenizer. Raises ScaleupError at `{where}.tokenizer`."""
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    remedy = "use the model's own tokenizer, or one with these tokens"
    if shell.config.is_encoder_decoder and (eos is None or eos != shell.config.eos_token_id):
        what = f"{shell.architecture} scores at its eos token {shell.config.eos_token_id}, the tokenizer's is {eos}"
        raise ScaleupError.of(f"{where}.tokenizer", what, remedy)
    if pad is None and eos is None:
        what = "has neither a pad nor an eos token: texts of several lengths make no batch"
        raise ScaleupError.of(f"{where}.tokenizer", what, remedy)


def _attention_width(text: PreTrainedConfig) -> int:
    """Heads times their size over all layers; an encoder-decoder's decoder attends twice, and is not this deep."""
    heads, hidden = getattr(text, "num_attention_heads", None), getattr(text, "hidden_size", None)
    if not heads or not hidden:
        return 0
    size = getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or hidden // heads
    return int(text.num_hidden_layers * heads * size)


def _lookups(shell: PreTrainedModel) -> int:
    """Elements of embeddings whose weight is no head's."""
    import torch

    head = shell.get_output_embeddings()
    tables = {module.weight for module in shell.modules() if isinstance(module, torch.nn.Embedding)}
    return sum(table.numel() for table in tables if head is None or table is not head.weight)


def _tensors(
    parameters: Iterable[torch.nn.Parameter], quantized: Mapping[torch.nn.Parameter, tuple[int, ...]]
) -> tuple[Tensors, ...]:
    """Parameters of one shape together, the largest first."""
    counts = Counter((tuple(quantized.get(p, p.shape)), p.requires_grad, p in quantized) for p in parameters)
    found = [
        Tensors(shape=shape, count=count, trainable=is_on, quantized=is_low)
        for (shape, is_on, is_low), count in counts.items()
    ]
    return tuple(sorted(found, key=lambda tensors: (-tensors.elements, tensors.shape)))


def _largest_block(shell: PreTrainedModel) -> int:
    """Elements of the largest part that FSDP2 gathers at once, as Accelerate divides a model: each of the layers that
    Transformers says not to split, an input embedding that nothing shares, and what is left."""
    names = set(shell._no_split_modules or ())
    blocks = [list(module.parameters()) for module in shell.modules() if type(module).__name__ in names]
    embedding, head = shell.get_input_embeddings(), shell.get_output_embeddings()
    is_shared = shell.config.is_encoder_decoder or head is None or head.weight is embedding.weight
    blocks += [] if is_shared else [[embedding.weight]]
    within = {parameter for block in blocks for parameter in block}
    blocks.append([parameter for parameter in shell.parameters() if parameter not in within])
    return max(sum(parameter.numel() for parameter in block) for block in blocks)


def _config(model: ModelConfig, location: str, where: str) -> PreTrainedConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            location, revision=model.revision or "main", trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError, StrictDataclassError) as error:
        key, remedy = f"{where}.path", "check the folder's config.json"
        if "trust_remote_code" in str(error):
            key, remedy = f"{where}.trust_remote_code", "read that code, then set this to true"
        elif not Path(location).is_dir():
            remedy = "name a folder that exists, or a hub name this machine can reach or has in its cache"
        what = f"cannot read the model {model.path!r}: {' '.join(str(error).split())[:300]}"
        raise ScaleupError.of(key, what, remedy) from error


def is_classifier(config: PreTrainedConfig) -> bool:
    """Whether a model's files have a head over labels."""
    return any(name.endswith(CLASSIFIER) for name in config.architectures or ())


def _task(model: ModelConfig, config: PreTrainedConfig, where: str, adapter: Path | None) -> Task:
    is_scored = adapter is not None and saved_settings(adapter).get("task_type") == "SEQ_CLS"
    if model.task == "sequence_classification" or is_classifier(config) or is_scored:
        if model.task not in ("auto", "sequence_classification"):
            what = f"{model.path!r} is a sequence classifier, not a {model.task} model"
            raise ScaleupError.of(f"{where}.task", what, "leave it out, or name another model")
        return "sequence_classification"
    task: Task = "seq2seq_lm" if config.is_encoder_decoder else "causal_lm"
    if model.task not in ("auto", task):
        what = f"{model.path!r} ({config.model_type}) is a {task} model, not {model.task}"
        raise ScaleupError.of(f"{where}.task", what, f"set it to {task} or auto")
    if _is_encoder(config):
        if isinstance(model, AskedModel) and model.takes_encoders:
            return "sequence_classification"
        what = f"{model.path!r} ({config.model_type}) is an encoder: it cannot generate text"
        raise ScaleupError.of(f"{where}.path", what, "name a causal or an encoder-decoder model")
    return task


def _is_encoder(config: PreTrainedConfig) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    is_masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return is_masked and not getattr(config, "is_decoder", False) and not config.is_encoder_decoder


def _shell(model: ModelConfig, config: PreTrainedConfig, task: Task, where: str) -> PreTrainedModel:
    """The model without storage."""
    import torch

    from .load import auto_class, first_line

    if task == "sequence_classification" and not is_classifier(config):
        config.num_labels = 1
    try:
        with torch.device("meta"):
            shell = auto_class(task).from_config(config, trust_remote_code=model.trust_remote_code)
    except ValueError as error:
        what = f"{model.path!r} ({config.model_type}) cannot be built as a {task} model: {first_line(error)}"
        raise ScaleupError.of(f"{where}.path", what, "name a model of that kind") from error
    shell.tie_weights()
    return shell


def _untie(shell: PreTrainedModel, location: str) -> None:
    """Give back a tensor of their own to weights that loading leaves apart.

    transformers 5 ties T5's head whatever its config says, and when loading unties any pair of weights that the files
    hold twice with different values (FLAN-T5's head). The same is done here: counts are those of the loaded model."""
    import torch

    pairs = [pair for pair in shell.all_tied_weights_keys.items() if _differ(location, *pair)]
    head = shell.get_output_embeddings()
    if (
        head is not None
        and not Path(location).is_dir()
        and getattr(shell.config, "scale_decoder_outputs", True) is False
    ):
        pairs = [("lm_head.weight", "shared.weight")]  # a hub name's files are not here: T5 1.1's and FLAN's mark
    for target, _ in pairs:
        parent, _, name = target.rpartition(".")
        own = torch.nn.Parameter(torch.empty_like(shell.get_parameter(target)))
        setattr(shell.get_submodule(parent), name, own)


def _differ(location: str, first: str, second: str) -> bool:
    """Whether the safetensors files of a folder hold both names, with different values."""
    import torch
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for path in sorted(Path(location).glob("*.safetensors")):
        with contextlib.suppress(Exception), safe_open(path, "pt") as file:  # a broken file is for loading to report
            for name in {first, second} & set(file.keys()):
                found[name] = file.get_tensor(name)
    return len(found) == 2 and not torch.equal(found[first], found[second])
