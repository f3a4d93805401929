"""This module checks adapters that are named by their folders: that they were trained on the base they are put on, and
are of one kind where several share it. It reads adapter_config.json and config.json alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from scaleup.config.adapters import SelectiveAdapter
from scaleup.config.run import RunConfig
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.base import TrainingConfig
from scaleup.errors import Problem
from scaleup.plan.facts import ModelFacts
from scaleup.plan.model_path import adapter_base, adapter_folder, adapter_path_problems, saved_settings

TAKEN = frozenset(
    {
        *("metric", "before", "baseline", "id", "prompt", "tools", "text", "reference", "completion", "scores"),
        *("label", "chosen", "rejected", "margin"),
    }
)
"""Lists the names that columns and keys of results have already."""

MOVING_STARTS = ("pissa", "olora", "corda", "loftq", "eva")
"""Lists initializations (LoRA's init_lora_weights) that take something out of the base's own weights."""

SIZE = re.compile(r"(^|_)(?<!ngram_)(size|layers?|heads?|dim|width|model|kv|ff|embd|inner|experts)$")
"""Matches the keys of a config.json that say how large weights are."""


def named_adapters(config: RunConfig) -> dict[str, str]:
    """Returns config key -> path of the adapters for the base that model.path names."""
    if isinstance(config, TrainingConfig):
        adapter = config.adapter
        if adapter is None or isinstance(adapter, SelectiveAdapter) or adapter.path is None:
            return {}
        return {"adapter.path": adapter.path}
    return {f"adapters.{name}": path for name, path in (getattr(config, "adapters", None) or {}).items()}


def taken_problems(names: Iterable[str], section: str) -> Iterator[Problem]:
    """Yields names of columns that the results have already; `section` is their config key."""
    for name in names:
        if name in TAKEN:
            yield Problem(f"{section}.{name}", f"the results have a {name!r} already", "choose another name")


def side_by_side_problems(adapters: Mapping[str, str] | None, model: ModelConfig) -> Iterator[Problem]:
    """Yields adapters, by name, that cannot be put on one base model together."""
    if not adapters:
        return
    if adapter_folder(model.path) is not None:
        what = f"is an adapter itself ({model.path}), and adapters go on a base"
        yield Problem("model.path", what, "name the base model, and this one under adapters")
    yield from taken_problems(adapters, "adapters")
    folders: dict[str, Path] = {}
    for name, path in adapters.items():
        key = f"adapters.{name}"
        yield from adapter_path_problems(path, key)
        if (folder := adapter_folder(path)) is not None:
            same = next((other for other, known in folders.items() if known.samefile(folder)), None)
            if same:
                yield Problem(key, f"is the adapter that adapters.{same} names", "leave one out")
            folders[name] = folder
    yield from _kinds_differ(folders)
    if len(folders) > 1:
        yield from _in_each_others_way({name: saved_settings(folder) for name, folder in folders.items()})


def _kinds_differ(folders: Mapping[str, Path]) -> Iterator[Problem]:
    """Yields adapters of another kind than the first: PEFT holds one kind on a base, and LoRA's variants are one."""
    kinds = {name: _kind(folder) for name, folder in folders.items()}
    first = next(iter(kinds), "")
    for name, kind in kinds.items():
        if kind and kinds[first] and kind != kinds[first]:
            what = f"is of kind {kind}, and adapters.{first} of {kinds[first]}: PEFT puts one kind on a base"
            yield Problem(f"adapters.{name}", what, "compare it in a run of its own")


def _kind(folder: Path) -> str:
    return str(saved_settings(folder).get("peft_type", ""))


def _in_each_others_way(settings: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """Yields adapters that change the base under the others."""
    targets = {name: _names(adapter.get("target_modules")) for name, adapter in settings.items()}
    for name, adapter in settings.items():
        key = f"adapters.{name}"
        if adapter.get("bias", "none") != "none":
            what = "has trained biases of the base, which the others would get too"
            yield Problem(key, what, "compare it in a run of its own")
        if str(adapter.get("init_lora_weights", "")).lower().startswith(MOVING_STARTS):
            what = f"was begun with {adapter['init_lora_weights']}, which changes the base that the others stand on"
            yield Problem(key, what, "compare it in a run of its own")
        whole = _names(adapter.get("modules_to_save"))
        for other in settings:
            if shared := sorted(whole & targets[other]):
                what = f"has trained {shared[0]} whole, and adapters.{other} adapts it"
                yield Problem(key, what, "compare it in a run of its own")


def base_problems(config: RunConfig, facts: ModelFacts) -> list[Problem]:
    """Returns adapters that were trained on another base than the one that will be loaded, as far as that can be
    seen."""
    problems = []
    for key, path in named_adapters(config).items():
        folder = adapter_folder(path)
        base = adapter_base(folder) if folder else None
        if base is not None and (difference := _difference(base, facts.location)):
            what = f"was trained on another base ({base}) than {config.model.path}: {difference}"
            problems.append(Problem(key, what, "name the base model that it was trained on"))
    return problems


def _difference(one: str, other: str) -> str | None:
    """Returns how the architectures or sizes of two model folders differ; None where they do not, or where one is not
    here."""
    left, right = (_shape(Path(place)) for place in (one, other))
    for key in left.keys() & right.keys():
        if left[key] != right[key]:
            return f"{key} is {left[key]}, not {right[key]}"
    return None


def _shape(folder: Path) -> dict[str, Any]:
    """Returns the architecture and the sizes of weights in config.json."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config") or {}
        sizes = {key: value for part in (config, text) for key, value in part.items() if SIZE.search(key)}
        named = {key: config[key] for key in ("model_type", "architectures") if config.get(key)}
    except (OSError, ValueError, AttributeError):
        return {}
    return named | {key: value for key, value in sizes.items() if type(value) is int}


def _names(modules: Any) -> set[str]:
    """Returns the last parts of module names in a list; none for a pattern, which names no modules."""
    return {str(name).rpartition(".")[2] for name in modules} if isinstance(modules, list) else set()
