"""A model's path goes in; whether it exists, has weights, and of what family it is comes out, without loading
anything."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import cache_folder
from scaleup.config.schema import ModelConfig
from scaleup.errors import Problem

ADAPTER_FILE = "adapter_config.json"
GGUF_FILE = "model.gguf"
"""Is the name of an export for llama.cpp in its folder."""
CONVERTER_FILE = "convert_hf_to_gguf.py"
BUILTIN = (
    "tiny-llama",
    "tiny-qwen2",
    "tiny-mixtral",
    "tiny-gpt2",
    "tiny-t5",
    "tiny-bart",
    "tiny-bert",
    "tiny-bert-classifier",
    "tiny-hate-classifier",
)
"""Names what scaleup.models.builtin can build: `builtin:NAME`."""
HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


def model_folder(path: str) -> Path | None:
    """Returns the local folder that a path names, for a finished run its `model/`; None for hub, package and built-in
    names."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return None
    return folder / "model" if (folder / "manifest.json").is_file() else folder


def model_path_problems(
    model: ModelConfig, where: str, needs_weights: bool = True, is_trained: bool = False
) -> list[Problem]:
    """Returns what is wrong with a model at the config key `where`, as far as can be seen without loading it."""
    return [
        *_new_token_problems(model, f"{where}.new_tokens", is_trained),
        *_path_problems(model, where, needs_weights),
    ]


def _new_token_problems(model: ModelConfig, key: str, is_trained: bool) -> Iterator[Problem]:
    if model.new_tokens and not is_trained:
        what = "are learned by training, and this model is not trained"
        yield Problem(key, what, "leave them out: a finished run's model has its own")
    for token, count in Counter(model.new_tokens).items():
        if not token.strip():
            yield Problem(key, f"{token!r} is blank", "leave it out, or write what stands in the texts")
        elif count > 1:
            yield Problem(key, f"{token!r} is there {count} times", "name each token once")
    if model.new_tokens and adapter_folder(model.path) is not None:
        what = f"are not supported with a model.path that is an adapter ({model.path})"
        yield Problem(key, what, "export it first: scaleup export, then name the whole model")


def _path_problems(model: ModelConfig, where: str, needs_weights: bool) -> list[Problem]:
    key = f"{where}.path"
    if model.path.startswith("builtin:"):
        return builtin_problems(model.path.removeprefix("builtin:"), key)
    if model.path.startswith("package:"):
        return _package_problems(model.path.removeprefix("package:"), key)
    folder = model_folder(model.path)
    if folder is None:
        is_run = model.path.startswith("runs/")  # looks like a hub's name, and is a run that was not made yet
        if HUB_NAME.match(model.path) and not is_run and not Path(model.path).expanduser().exists():
            return []
        return [
            Problem(
                key, f"there is no model folder {model.path}", "name a Hugging Face folder, a run folder or a hub name"
            )
        ]
    if (folder / "config.yaml").is_file() and (folder / "plan.json").is_file():
        return [
            Problem(key, f"{folder} is a run that has not finished", "continue it with --resume, or name another model")
        ]
    if (folder / ADAPTER_FILE).is_file():
        return _adapter_problems(folder, key)
    if not (folder / "config.json").is_file():
        return [Problem(key, f"{folder} holds no config.json", "name a folder in Hugging Face layout")]
    if needs_weights and not list(folder.glob("*.safetensors")):
        other = list(folder.glob("*.bin")) + list(folder.glob("*.pt"))
        what = f"{folder} holds pickled weights ({other[0].name}) only" if other else f"{folder} holds no weights"
        return [Problem(key, what, "save the model with safetensors (save_pretrained does)")]
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [Problem(key, f"{folder}/config.json cannot be read: {error}", "mend or replace the folder")]
    return []


def gguf_file(path: str) -> Path | None:
    """Returns the GGUF file in a folder or a finished run; None where there is none."""
    folder = model_folder(path)
    return folder / GGUF_FILE if folder and (folder / GGUF_FILE).is_file() else None


def adapter_folder(path: str) -> Path | None:
    """Returns the folder of the adapter at a path: its own, or a finished run's; None where there is none."""
    folder = model_folder(path)
    return folder if folder and (folder / ADAPTER_FILE).is_file() else None


def adapter_base(folder: Path) -> str | None:
    """Returns where an adapter says that its base model is. Raises OSError and ValueError if its file cannot be
    read."""
    return json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")


def tokenizer_beside(folder: Path) -> Path | None:
    """Returns the folder of an adapter that has a tokenizer of its own; None where the base's is used."""
    return folder if (folder / "tokenizer_config.json").is_file() else None


def saved_type(folder: Path) -> str:
    """Returns the type of a saved adapter, as a config calls it: lora, dora, ia3, prefix or another; `full` where its
    file cannot be read."""
    settings = saved_settings(folder)
    if settings.get("use_dora"):
        return "dora"
    kind = str(settings.get("peft_type", "full")).lower()
    return "prefix" if kind == "prefix_tuning" else kind


def saved_settings(folder: Path) -> dict[str, Any]:
    """Returns the settings in an adapter's file; none where it cannot be read."""
    try:
        settings = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def adapter_path_problems(path: str, key: str) -> list[Problem]:
    """Returns problems of the path of an adapter that goes on the base that the config names."""
    folder = adapter_folder(path)
    if folder is not None:
        problems = _adapter_problems(folder, key)
        if saved_settings(folder).get("trainable_token_indices"):
            what = f"has learned tokens that its base ({adapter_base(folder)}) lacks"
            problems.append(Problem(key, what, "name it as model.path: it brings its own tokenizer"))
        return problems
    return [Problem(key, f"{path} holds no {ADAPTER_FILE}", "name the folder of an adapter, or a finished run of one")]


def _adapter_problems(folder: Path, key: str) -> list[Problem]:
    if not (folder / "adapter_model.safetensors").is_file():
        what = f"{folder} holds no adapter_model.safetensors"
        return [Problem(key, what, "save the adapter with safetensors (PEFT's save_pretrained does)")]
    try:
        base = adapter_base(folder)
    except (OSError, ValueError, AttributeError) as error:
        return [Problem(key, f"{folder}/{ADAPTER_FILE} cannot be read: {error}", "mend or replace the folder")]
    if not base:
        return [Problem(key, f"{folder}/{ADAPTER_FILE} names no base model", "give base_model_name_or_path there")]
    if not HUB_NAME.match(base) and not Path(base).is_dir():
        return [Problem(key, f"the base model of {folder} is gone: {base}", "bring it back, or name it in that file")]
    return []


def builtin_problems(name: str, key: str) -> list[Problem]:
    if name in BUILTIN:
        return []
    near = get_close_matches(name, BUILTIN, n=1)
    remedy = f"did you mean builtin:{near[0]}?" if near else f"one of {', '.join(BUILTIN)}"
    return [Problem(key, f"there is no built-in model {name!r}", remedy)]


def _package_problems(name: str, key: str) -> list[Problem]:
    try:
        metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        return [Problem(key, f"the package {name!r} is not installed", f"pip install --no-deps {name}")]
    return []


def quantization_of(path: str) -> str | None:
    """Returns how the weights of a local model folder, or of an adapter's base there, are quantized (transformers'
    quant_method); None where they are not, or where it cannot be seen."""
    adapter = adapter_folder(path)
    try:
        folder = model_folder(str(adapter_base(adapter)) if adapter else path)
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
        settings = raw.get("quantization_config")
        return str(settings.get("quant_method", "quantized")) if settings else None
    except (OSError, ValueError, AttributeError):
        return None


def converter_folder(converter: str | None) -> Path:
    """Returns where llama.cpp's converter is looked for: where `export.converter` says, else in the cache."""
    return Path(converter).expanduser() if converter else cache_folder() / "converter"


def peek_model_type(model: ModelConfig) -> str | None:
    """Returns Transformers' model type (t5, llama, ...) where it can be read off at once; None where it cannot."""
    if model.path.startswith("builtin:"):
        return model.path.removeprefix("builtin:").removeprefix("tiny-")
    folder = adapter_folder(model.path)
    try:
        if folder is not None and (base := adapter_base(folder)):
            return peek_model_type(ModelConfig(path=base))
        folder = model_folder(model.path)
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") if folder else None
    except (OSError, ValueError, AttributeError):
        return None
