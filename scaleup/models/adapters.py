"""This module puts adapters on a loaded model, and saves them: what is trained on top of a model that stays as it is.
They are PEFT's, saved so that plain PEFT loads them again, and our own `selective`, which trains some of the model's
parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from scaleup.artifacts.classifier_files import LABELS_FILE, SavedLabels
from scaleup.artifacts.files import write_json
from scaleup.config.adapters import (
    AdaLoraAdapter,
    AnyAdapter,
    IA3Adapter,
    LoraAdapter,
    PrefixAdapter,
    PromptTuningAdapter,
    SelectiveAdapter,
)
from scaleup.errors import ScaleupError
from scaleup.models.classifier import head_names, is_sequence_classifier, label_names, problem_of
from scaleup.models.load import first_line
from scaleup.models.new_tokens import check_rows_are_trained, own_tables, token_tables, trained_rows
from scaleup.models.quantized import import_bitsandbytes
from scaleup.models.soft_prompts import ADAPTER, make_prompt_trainable, prefix_shape, save_prompt
from scaleup.plan.model_path import adapter_folder

AnyPeft = LoraAdapter | IA3Adapter | AdaLoraAdapter | PromptTuningAdapter | PrefixAdapter
SETTINGS = "generation_config.json"
SNAPSHOT = "start"
"""Is the name within PEFT of the adapter that serves as a policy's reference."""
TASK_TYPES = {"causal_lm": "CAUSAL_LM", "seq2seq_lm": "SEQ_2_SEQ_LM", "sequence_classification": "SEQ_CLS"}


def adapt(model: Any, adapter: AnyAdapter, task: str, tokenizer: str = "", new_token_ids: Sequence[int] = ()) -> Any:
    """Returns the model with a new adapter, or one to go on from; only what it trains has gradients. A prompt that
    starts as a text needs the folder or hub name of its `tokenizer`. A new LoRA trains the rows of `new_token_ids` too.

    Raises ScaleupError at `adapter.target_modules`, `adapter.parameters`, `adapter.modules_to_save` or
    `adapter.path`."""
    tables = token_tables(model) if new_token_ids else {}
    if isinstance(adapter, SelectiveAdapter):
        patterns = [f"*{name}.*" for name in head_names(model)] if task == "sequence_classification" else []
        selected = _select(model, [*adapter.parameters, *patterns])
        _check_selected(selected, tables)
        return selected
    if adapter.path is not None:
        folder = adapter_folder(adapter.path)
        assert folder is not None, "the plan has looked for it"
        return load_adapter(model, folder, trainable=True, where="adapter.path")
    settings = peft_config(adapter, task, model.config, tokenizer)
    if task == "sequence_classification" and hasattr(settings, "modules_to_save"):
        settings.modules_to_save = [*(settings.modules_to_save or []), *head_names(model)]  # a new head is trained too
    if tables:
        settings.trainable_token_indices = trained_rows(tables, new_token_ids, settings)
    adapted = _wrapped(model, settings)
    check_rows_are_trained(adapted, tables)
    return adapted


def shell_adapted(
    shell: Any, adapter: AnyAdapter | None, folder: Path | None, task: str, new_token_ids: Sequence[int] = ()
) -> Any:
    """Returns what `adapt` or `load_adapter` would make, of a model without storage: only shapes are read."""
    import_bitsandbytes()
    from peft import PeftConfig, get_peft_model

    where = "model.path"
    if isinstance(adapter, PromptTuningAdapter):  # the shape is the same, and no tokenizer is needed
        adapter = adapter.model_copy(update={"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None})
    if adapter is not None and (isinstance(adapter, SelectiveAdapter) or adapter.path is None):
        return adapt(shell, adapter, task, new_token_ids=new_token_ids)
    if folder is None and adapter is not None and not isinstance(adapter, SelectiveAdapter) and adapter.path:
        folder, where = adapter_folder(adapter.path), "adapter.path"
    if folder is None:
        return shell
    settings = PeftConfig.from_pretrained(str(folder))
    settings.inference_mode = settings.is_prompt_learning  # a prompt is then what was saved, whatever it began as
    try:
        adapted = get_peft_model(shell, settings)
    except ValueError as error:
        raise _does_not_fit(where, folder, shell, error) from error
    if is_adalora(adapted) and settings.rank_pattern:
        kept = {name: torch.tensor(ranks, device="cpu") for name, ranks in settings.rank_pattern.items()}
        adapted.base_model.resize_modules_by_rank_pattern(kept, ADAPTER)
    return adapted


def load_adapter(model: Any, folder: Path, trainable: bool, where: str = "model.path") -> Any:
    """Returns the model with a saved adapter. Raises ScaleupError at `where` if it does not fit."""
    import_bitsandbytes()
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    try:
        is_prompt = PeftConfig.from_pretrained(str(folder)).is_prompt_learning
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable and not is_prompt)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _does_not_fit(where, folder, model, error) from error
    if trainable and is_prompt:
        make_prompt_trainable(adapted)
    return adapted


def _does_not_fit(where: str, folder: Path, model: Any, error: Exception) -> ScaleupError:
    what = f"the adapter {folder} does not fit {type(model).__name__}: {first_line(error)}"
    return ScaleupError.of(where, what, "name the base model that it was trained on")


def load_side_by_side(base: Any, adapters: Mapping[str, Path]) -> Any:
    """Returns the base with several saved adapters of one kind, of which `use_adapter` makes one active; for
    evaluation.

    Raises ScaleupError at `adapters.NAME` if one does not fit."""
    import_bitsandbytes()
    from peft import PeftModel
    from safetensors import SafetensorError

    model: Any = None
    for number, (name, folder) in enumerate(adapters.items()):
        peft_name = _peft_name(number)
        try:
            if model is None:
                model = PeftModel.from_pretrained(base, str(folder), adapter_name=peft_name)
            else:
                model.load_adapter(str(folder), adapter_name=peft_name)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            raise _does_not_fit(f"adapters.{name}", folder, base, error) from error
    return model.eval()


def use_adapter(model: Any, number: int) -> None:
    """Makes the nth of the adapters of `load_side_by_side` the active one."""
    model.set_adapter(_peft_name(number), inference_mode=True)


def snapshot_adapter(model: Any) -> None:
    """Puts a frozen copy of a model's only adapter beside it, for `initial_adapter`."""
    model.add_adapter(SNAPSHOT, model.peft_config[ADAPTER])
    copies = {name: part for name, part in model.named_parameters() if f".{SNAPSHOT}" in name}
    own = dict(model.named_parameters())
    for name, part in copies.items():
        part.data.copy_(own[name.replace(f".{SNAPSHOT}", f".{ADAPTER}")].data)
        part.requires_grad_(False)


@contextmanager
def initial_adapter(model: Any) -> Iterator[None]:
    """Makes forward passes inside use the adapter that `snapshot_adapter` copied. PEFT's own `set_adapter` would change
    which parameters have gradients, under engines that have seen to that."""
    parts = [part for part in model.modules() if getattr(part, "_active_adapter", None)]
    before = [part._active_adapter for part in parts]
    for part in parts:
        part._active_adapter = [SNAPSHOT]
    try:
        yield
    finally:
        for part, active in zip(parts, before, strict=True):
            part._active_adapter = active


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """Makes forward passes inside use the base alone. PEFT's own `disable_adapter` would take the gradients of what is
    trained away for the time being: of a part that FSDP2 has whole then, its shard would never get them back."""
    if model.active_peft_config.is_prompt_learning:
        with model.disable_adapter():
            yield
        return
    parts = [part for part in model.modules() if hasattr(part, "_disable_adapters")]
    for part in parts:
        part._disable_adapters = True
    try:
        yield
    finally:
        for part in parts:
            part._disable_adapters = False


def drop_snapshot(model: Any) -> None:
    """Removes the copy, if there is one, so that the adapter alone is saved."""
    if SNAPSHOT in model.peft_config:
        model.delete_adapter(SNAPSHOT)


def _peft_name(number: int) -> str:
    """Returns an adapter's name within PEFT, which looks for names within names of parameters: users' own could be
    there."""
    return f"adapter{number:03d}"


def save_adapter(model: Any, folder: Path, trained: dict[str, torch.Tensor]) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, of the trained parameters by their names in the
    model; and what its base generates by, wherever that lies."""
    if model.active_peft_config.is_prompt_learning:
        save_prompt(model, folder, trained)
    else:
        model.save_pretrained(str(folder), state_dict=trained, save_embedding_layers=False)
    save_settings_of_base(model, folder)
    _save_labels(model.get_base_model(), folder)


def _save_labels(base: Any, folder: Path) -> None:
    """Writes what a classifier's head is over beside it: PEFT saves its weights alone. A reward model's is one
    score."""
    if not is_sequence_classifier(base):
        return
    saved = SavedLabels(labels=label_names(base.config), problem=problem_of(base.config))
    if len(saved.labels) > 1 or saved.problem is not None:
        write_json(folder / LABELS_FILE, saved.model_dump(mode="json"))


def save_settings_of_base(model: Any, folder: Path) -> None:
    """Writes the generation config of an adapter's base beside it, which PEFT does not; models that do not generate
    have none."""
    own = getattr(model.get_base_model(), "generation_config", None)
    if own is not None:
        write_json(folder / SETTINGS, json.loads(own.to_json_string()))


def is_adapted(model: Any) -> bool:
    """Returns whether a model's result is an adapter, not a whole model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def is_adalora(model: Any) -> bool:
    return is_adapted(model) and model.active_peft_config.peft_type == "ADALORA"


def peft_config(adapter: AnyPeft, task: str, model: Any, tokenizer: str) -> Any:
    """Returns PEFT's settings for a new adapter on a model with the config `model`."""
    import_bitsandbytes()
    from peft import AdaLoraConfig, IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig

    settings = adapter.model_dump(exclude={"type", "path"}) | {"task_type": TASK_TYPES[task]}
    if isinstance(adapter, LoraAdapter):
        return LoraConfig(**settings)
    if isinstance(adapter, IA3Adapter):
        return IA3Config(**settings)
    if isinstance(adapter, AdaLoraAdapter):
        shortest = adapter.tinit + adapter.tfinal + 2  # PEFT asks for some; RankAllocation says the run's own
        return AdaLoraConfig(**settings, total_step=shortest)
    if isinstance(adapter, PrefixAdapter):
        return PrefixTuningConfig(**settings, **prefix_shape(model))
    if adapter.prompt_tuning_init == "TEXT":
        settings["tokenizer_name_or_path"] = tokenizer
    return PromptTuningConfig(**settings)


def _wrapped(model: Any, settings: Any) -> Any:
    import_bitsandbytes()
    from peft import get_peft_model

    names = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _is_matrix(module)})
    try:
        return get_peft_model(model, settings)
    except ValueError as error:
        what = f"{type(model).__name__}: {first_line(error)}"
        if settings.is_prompt_learning:
            raise ScaleupError.of("adapter.type", what, "use lora") from error
        if stacked := _stacked(model) & set(settings.target_modules or ()):
            what = f"adapters on experts are not supported: {', '.join(sorted(stacked))} of {type(model).__name__}"
        raise ScaleupError.of("adapter.target_modules", what, f"name some of {', '.join(names)}") from error


def _is_matrix(module: torch.nn.Module) -> bool:
    return getattr(getattr(module, "weight", None), "ndim", 0) == 2


def _select(model: Any, patterns: list[str]) -> Any:
    """Freezes everything but the parameters of which a name matches a pattern; a shared parameter has several names."""
    chosen: set[torch.nn.Parameter] = set()
    for pattern in patterns:
        matched = {p for name, p in model.named_parameters(remove_duplicate=False) if fnmatchcase(name, pattern)}
        if not matched:
            some = ", ".join(name for name, _ in list(model.named_parameters())[-3:])
            what = f"{pattern!r} matches no parameter of {type(model).__name__}"
            raise ScaleupError.of("adapter.parameters", what, f"its names are like {some}")
        chosen |= matched
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in chosen)
    return model


def _check_selected(model: Any, tables: Mapping[str, torch.nn.Parameter]) -> None:
    """Raises ScaleupError at `adapter.parameters` if rows of new tokens would stay as they are."""
    if frozen := [name for name, table in own_tables(tables).items() if not table.requires_grad]:
        what = (
            f"leaves out {' and '.join(frozen)} of {type(model).__name__}, whose rows of new tokens are to be learned"
        )
        patterns = ", ".join(repr(f"*{name}.weight") for name in frozen)
        raise ScaleupError.of("adapter.parameters", what, f"add {patterns}, or leave model.new_tokens out")


def _stacked(model: Any) -> set[str]:
    """Returns the names of modules, and of parameters in them, that hold the weights of several experts in one
    tensor."""
    within = [name.rsplit(".", 2)[-2:] for name, parameter in model.named_parameters() if parameter.ndim == 3]
    return {part for parts in within for part in parts}
