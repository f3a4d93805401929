"""A model's config goes in; the model on the meta device comes out, with the adapter, the quantization and the layers
that it is to have: its shapes are known, and no weights are loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scaleup.artifacts.classifier_files import read_labels
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.distill import EveryLayer
from scaleup.errors import ScaleupError
from scaleup.models.sources import absence, materialize
from scaleup.plan.facts import ModelRequest
from scaleup.plan.model_path import adapter_base, adapter_folder, saved_settings, tokenizer_beside

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Task = Literal["causal_lm", "seq2seq_lm", "sequence_classification"]
CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True)
class Shell:
    """Holds a model without storage, with what will be trained on top of it."""

    location: str
    config: PreTrainedConfig
    task: Task
    model: Any
    architecture: str
    adapter: Path | None
    """Is the folder of the adapter that the path names."""
    quantized: Mapping[torch.nn.Parameter, tuple[int, ...]]
    """Maps each parameter that is quantized -> the shape that it has before."""
    largest_block: int
    """Counts the elements of the largest part that FSDP2 gathers at once."""
    num_lookup_parameters: int
    """Counts the elements of embeddings that are only looked up in."""
    layers: dict[str, tuple[int, ...]] | None
    """Holds, by stack, the numbers of the files' layers that are kept; None: all."""
    tokenizer: PreTrainedTokenizerBase
    stored_vocab_size: int | None
    """Counts the rows of the embeddings in the files, where the model has more; None: as many."""


def shell_of(
    model: ModelConfig,
    where: str = "model",
    config: PreTrainedConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Shell:
    """Build a model on the meta device. The folder of a package or a built-in model is made if it is not there yet.
    `config` takes the place of the folder's own, `tokenizer` is one that is at hand.

    Raises ScaleupError at `{where}.path`, `.task`, `.trust_remote_code`, `.tokenizer` or `.new_tokens`, and if an
    adapter does not fit."""
    from scaleup.models.load import load_tokenizer
    from scaleup.models.quantized import quantize_shell

    folder = materialize(model.path, f"{where}.path")
    adapter = adapter_folder(folder)
    location = str(adapter_base(adapter)) if adapter else folder
    config = config or _config(model, location, where)
    task = _task(model, config, where, adapter)
    requested = model if isinstance(model, ModelRequest) else ModelRequest(**model.model_dump())
    if task == "sequence_classification":
        _name_labels(config, requested, adapter)
    shell = _shell(model, config, task, where)
    _untie(shell, location)
    beside = tokenizer_beside(adapter) if adapter else None
    tokenizer = tokenizer or load_tokenizer(model, str(beside or location), where)
    stored = _grown_from(shell, model, tokenizer, beside)
    layers = _cut(shell, requested.layers) if requested.layers is not None else None
    sizes = _largest_block(shell), _num_lookups(shell)
    quantized = quantize_shell(shell, requested.quantization) if requested.quantization else {}
    ids = tokenizer.convert_tokens_to_ids(model.new_tokens)
    whole = _adapted(shell, requested, adapter, task, ids) if adapter or requested.adapter else shell
    return Shell(
        location,
        shell.config,
        task,
        whole,
        type(shell).__name__,
        adapter,
        quantized,
        *sizes,
        layers,
        tokenizer,
        stored,
    )


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
            remedy = "name a folder that exists, or a hub name"
        said = " ".join(str(error).split())[:300]
        what = absence(location, error) or f"cannot read the model {model.path!r}: {said}"
        raise ScaleupError.of(key, what, remedy) from error


def _task(model: ModelConfig, config: PreTrainedConfig, where: str, adapter: Path | None) -> Task:
    adapts = saved_settings(adapter).get("task_type") if adapter is not None else None
    is_scorer = adapts == "SEQ_CLS"
    if model.task == "sequence_classification" and adapts in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        what = f"{model.path!r} is an adapter of a language model, and a classifier has another head"
        raise ScaleupError.of(f"{where}.path", what, "merge it first (scaleup export), and name the result")
    if model.task == "sequence_classification" or is_classifier(config) or is_scorer:
        if model.task not in ("auto", "sequence_classification"):
            what = f"{model.path!r} is a sequence classifier, not a {model.task} model"
            raise ScaleupError.of(f"{where}.task", what, "leave it out, or name another model")
        return "sequence_classification"
    task: Task = "seq2seq_lm" if config.is_encoder_decoder else "causal_lm"
    if model.task not in ("auto", task):
        what = f"{model.path!r} ({config.model_type}) is a {task} model, not {model.task}"
        raise ScaleupError.of(f"{where}.task", what, f"set it to {task} or auto")
    if is_encoder(config):
        if isinstance(model, ModelRequest) and model.takes_encoders:
            return "sequence_classification"
        what = f"{model.path!r} ({config.model_type}) is an encoder: it cannot generate text"
        raise ScaleupError.of(f"{where}.path", what, "name a causal or an encoder-decoder model")
    return task


def is_classifier(config: PreTrainedConfig) -> bool:
    """Return whether a model's files have a head over labels."""
    return any(name.endswith(CLASSIFIER) for name in config.architectures or ())


def is_encoder(config: PreTrainedConfig) -> bool:
    """Return whether a model type is an encoder alone, e.g. BERT."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    is_masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return is_masked and not getattr(config, "is_decoder", False) and not config.is_encoder_decoder


def _name_labels(config: PreTrainedConfig, requested: ModelRequest, adapter: Path | None) -> None:
    """Set what a classifier's head is over, where its files do not say: what its adapter's file does, or else what is
    asked for. Raises ScaleupError at an adapter's file that cannot be used."""
    from scaleup.models.classifier import head_settings, label_names, problem_of

    saved = read_labels(adapter) if adapter else None
    problem = problem_of(config) or (saved.problem if saved else requested.problem)
    labels = label_names(config) if is_classifier(config) else saved.labels if saved else requested.new_labels
    if not labels:
        problem = None  # one score, which nothing is known of
    elif is_classifier(config) and len(labels) == 1 and problem == "single_label":
        problem = "regression"  # as Transformers takes a head of one score
    for name, value in head_settings(labels, problem).items():
        setattr(config, name, value)


def _shell(model: ModelConfig, config: PreTrainedConfig, task: Task, where: str) -> PreTrainedModel:
    """Build the model without storage, its tied weights tied."""
    import torch

    from scaleup.models.load import auto_class, first_line

    options = {"attn_implementation": "eager"} if model.attn_implementation == "eager" else {}
    try:
        with torch.device("meta"):
            shell = auto_class(task).from_config(config, trust_remote_code=model.trust_remote_code, **options)
    except ValueError as error:
        what = f"{model.path!r} ({config.model_type}) cannot be built as a {task} model: {first_line(error)}"
        raise ScaleupError.of(f"{where}.path", what, "name a model of that kind") from error
    _check_attention(shell, model, where)
    shell.tie_weights()
    return shell


def _check_attention(shell: PreTrainedModel, model: ModelConfig, where: str) -> None:
    """Check that a model's class has the attention that is asked for. The shell itself has eager attention or sdpa's,
    which keeps as little for the backward pass as flash and flex attention do: it is told what a GPU needs here.

    Raises ScaleupError at `{where}.attn_implementation`."""
    wanted, own = model.attn_implementation, getattr(shell, "_compatible_flash_implementations", None)
    kinds = {
        "eager": True,
        "sdpa": shell._supports_sdpa,
        "flash_attention_2": shell._supports_flash_attn and (own is None or "flash_attention_2" in own),
        "flash_attention_3": shell._supports_flash_attn and (own is None or "flash_attention_3" in own),
        "flex_attention": shell._supports_flex_attn,
    }
    if wanted is not None and not kinds[wanted]:
        what = f"{type(shell).__name__} has no {wanted} in Transformers"
        remedy = f"use {' or '.join(name for name, is_there in kinds.items() if is_there)}"
        raise ScaleupError.of(f"{where}.attn_implementation", what, remedy)


def _untie(shell: PreTrainedModel, location: str) -> None:
    """Give a tensor of their own to weights that loading leaves apart.

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
    """Return whether the safetensors files of a folder hold both names, with different values."""
    import torch
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(Path(location).glob("*.safetensors")):
        with contextlib.suppress(Exception), safe_open(path, "pt") as file:  # a broken file is for loading to report
            for name in {first, second} & set(file.keys()):
                tensors[name] = file.get_tensor(name)
    return len(tensors) == 2 and not torch.equal(tensors[first], tensors[second])


def _grown_from(
    shell: PreTrainedModel, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, beside: Path | None
) -> int | None:
    """Give the model a row for each of the config's new tokens, or of those that an adapter was saved with, whose
    tokenizer is `beside` it. Return how many rows there were, None if they are enough."""
    from scaleup.models.load import num_ids_of
    from scaleup.models.new_tokens import grow_vocabulary

    stored: int = shell.config.get_text_config().vocab_size
    is_told = bool(model.new_tokens) or (beside is not None and model.tokenizer is None)
    if not is_told or (needed := num_ids_of(tokenizer)) <= stored:
        return None
    grow_vocabulary(shell, needed)
    return stored


def _cut(shell: PreTrainedModel, layers: tuple[int, ...] | EveryLayer) -> dict[str, tuple[int, ...]]:
    """Keep these layers of each stack, and return their numbers. Raises ScaleupError at `distill.student_layers`."""
    from scaleup.models.architecture import architecture_of
    from scaleup.models.surgery import keep_layers

    try:
        depths = {stack.name: len(stack.blocks) for stack in architecture_of(shell).stacks}
        if isinstance(layers, EveryLayer):
            kept = {name: tuple(range(0, depth, layers.every)) for name, depth in depths.items()}
        else:
            kept = dict.fromkeys(depths, layers)
        keep_layers(shell, kept)
    except ValueError as error:
        what = f"{shell.config.model_type}: {error}"
        raise ScaleupError.of("distill.student_layers", what, "name layers that the model has") from error
    return kept


def _adapted(shell: PreTrainedModel, requested: ModelRequest, adapter: Path | None, task: Task, ids: list[int]) -> Any:
    import torch

    from scaleup.models.adapters import shell_adapted

    with torch.device("meta"):
        return shell_adapted(shell, requested.adapter, adapter, task, ids)


def _largest_block(shell: PreTrainedModel) -> int:
    """Count the elements of the largest part that FSDP2 gathers at once, as Accelerate divides a model: each of the
    layers that Transformers says not to split, an input embedding that nothing shares, and what is left."""
    names = set(shell._no_split_modules or ())
    blocks = [list(module.parameters()) for module in shell.modules() if type(module).__name__ in names]
    embedding, head = shell.get_input_embeddings(), shell.get_output_embeddings()
    is_shared = shell.config.is_encoder_decoder or head is None or head.weight is embedding.weight
    blocks += [] if is_shared else [[embedding.weight]]
    within = {parameter for block in blocks for parameter in block}
    blocks.append([parameter for parameter in shell.parameters() if parameter not in within])
    return max(sum(parameter.numel() for parameter in block) for block in blocks)


def _num_lookups(shell: PreTrainedModel) -> int:
    """Count the elements of embeddings whose weight is no head's."""
    import torch

    head = shell.get_output_embeddings()
    tables = {module.weight for module in shell.modules() if isinstance(module, torch.nn.Embedding)}
    return sum(table.numel() for table in tables if head is None or table is not head.weight)
