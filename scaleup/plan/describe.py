"""Models' paths go in; their facts come out, computed by the data plane in a process of its own; those of local models
are kept in the user's cache, so that planning the same model again costs nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import scaleup
from scaleup.artifacts.files import cache_folder, read_json, write_json
from scaleup.config.schema import ModelConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.extras import check_data_plane
from scaleup.plan.facts import MicroBatch, ModelFacts
from scaleup.plan.model_path import model_folder


def describe_models(models: Mapping[str, ModelConfig], micro_batch: MicroBatch | None = None) -> dict[str, ModelFacts]:
    """Returns the facts of models by config key (`model`, `baseline`), those of `model` with the footprint of a
    micro-batch. Package and built-in models are made into folders on the way.

    Raises DataPlaneMissing where torch is not installed, ScaleupError with every problem the data plane found."""
    check_data_plane()
    requests = {where: (model, micro_batch if where == "model" else None) for where, model in models.items()}
    facts = {where: cached for where, request in requests.items() if (cached := _remembered(*request)) is not None}
    missing = {where: request for where, request in requests.items() if where not in facts}
    if missing:
        for where, described in _ask(missing).items():
            facts[where] = described
            _remember(*missing[where], described)
    return facts


def _ask(models: Mapping[str, tuple[ModelConfig, MicroBatch | None]]) -> dict[str, ModelFacts]:
    question = [
        {
            "where": where,
            "model": model.model_dump(mode="json"),
            "micro_batch": micro_batch and micro_batch.model_dump(mode="json"),
        }
        for where, (model, micro_batch) in models.items()
    ]
    command = [sys.executable, "-m", "scaleup.describe.answer"]
    answer = subprocess.run(command, input=json.dumps(question), stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode != 0 or not answer.stdout.strip():
        raise RuntimeError(f"{' '.join(command)} failed with exit code {answer.returncode}; its error stands above")
    reply = json.loads(answer.stdout.strip().splitlines()[-1])
    if reply["problems"]:
        raise ScaleupError([Problem(**problem) for problem in reply["problems"]])
    return {where: ModelFacts.model_validate(facts) for where, facts in zip(models, reply["facts"], strict=True)}


def _cache_file(model: ModelConfig, micro_batch: MicroBatch | None) -> Path | None:
    """Returns where the answer is cached; None if it could change unnoticed."""
    parts = [model.model_dump_json(), *(metadata.version(name) for name in ("transformers", "torch", "peft"))]
    parts.append(micro_batch.model_dump_json() if micro_batch else "")
    adapter = getattr(getattr(model, "adapter", None), "path", None)
    for path in filter(None, (model.path, model.tokenizer, adapter)):
        marks = _marks(path)
        if marks is None:
            return None
        parts += marks
    package = Path(scaleup.__file__).parent
    # What an answer follows from: how models are described and built, and the losses whose footprint is traced.
    sources = sorted(file for room in ("describe", "models", "train") for file in (package / room).glob("*.py"))
    sources += [package / "plan" / name for name in ("arithmetic.py", "facts.py")]
    parts += [source.read_text(encoding="utf-8") for source in sources]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    return cache_folder() / "facts" / f"{key}.json"


def _marks(path: str) -> list[str] | None:
    """Returns what changes with the model at a path; None where that cannot be seen (hub names)."""
    if path.startswith("builtin:"):
        return []
    if path.startswith("package:"):
        with suppress(metadata.PackageNotFoundError, ValueError):
            return [metadata.version(path.removeprefix("package:"))]
    folder = model_folder(path)
    if folder is None:
        return None
    return sorted(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in folder.glob("*"))


def _remembered(model: ModelConfig, micro_batch: MicroBatch | None) -> ModelFacts | None:
    file = _cache_file(model, micro_batch)
    try:
        facts = ModelFacts.model_validate(read_json(file)) if file else None
    except (OSError, ValueError):
        return None
    return facts if facts and Path(facts.location, "config.json").is_file() else None


def _remember(model: ModelConfig, micro_batch: MicroBatch | None, facts: ModelFacts) -> None:
    if file := _cache_file(model, micro_batch):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, facts.model_dump(mode="json"))
        except OSError:
            return  # a cache that cannot be written only costs time
