"""Models' paths go in; their facts come out, computed by the data plane in a process of its own; those of local models
are kept in the user's cache, so that planning the same model again costs nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import scaleup
from scaleup.artifacts.data_file import stamp_of
from scaleup.artifacts.files import cache_folder, read_json, write_json, write_text
from scaleup.children import asked, kept_stderr, python_environment
from scaleup.config.fields import is_template_file
from scaleup.config.schema import ModelConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.extras import check_data_plane
from scaleup.plan.facts import MicroBatch, ModelFacts, RowsRequest
from scaleup.plan.model_path import model_folder
from scaleup.records.chat_templates import read_template
from scaleup.records.formats import data_files, local_path

LOG = "describe.log"
"""Names the file of the cache that takes what a broken process printed."""
LONGEST_CAUSE = 300
"""Is the number of its letters that a sentence quotes."""


@dataclass(frozen=True)
class Described:
    """Holds what the data plane knows of a config's models and rows."""

    facts: dict[str, ModelFacts]
    """Maps the config key of a model (`model`, `baseline`) to its facts."""
    notes: tuple[str, ...] = ()
    """Tells of rows that are not learned as one would think."""


Question = Sequence[Mapping[str, Any]]
"""Lists what is asked of the data plane: scaleup.describe.answer."""
Answers = Iterator[tuple[str, ModelFacts, list[str]]]
"""Yields for each part of a question the config key, the facts and the notes on rows."""


def describe_models(
    models: Mapping[str, ModelConfig],
    micro_batch: MicroBatch | None = None,
    readers: Mapping[str, RowsRequest] | None = None,
    ask: Callable[[Question], Answers] | None = None,
) -> Described:
    """Returns the facts of models by config key, those of `model` with the footprint of a micro-batch, and notes on the
    rows that the `readers` among them read. Package and built-in models are made into folders on the way. What is not
    remembered is asked of a process that ends with its answer, or of `ask`.

    Raises DataPlaneMissing where torch is not installed, ScaleupError with every problem the data plane found, or with
    the cause if it broke down."""
    check_data_plane()
    requests = {where: (model, micro_batch if where == "model" else None) for where, model in models.items()}
    facts = {where: cached for where, request in requests.items() if (cached := _remembered(*request)) is not None}
    readers = readers or {}
    remembered = {where: _remembered_notes(models[where], rows) for where, rows in readers.items()}
    notes = {where: known for where, known in remembered.items() if known is not None}
    unread = {where: rows for where, rows in readers.items() if where not in notes}
    question = [
        _request(where, *requests[where], facts.get(where), unread.get(where))
        for where in requests
        if where not in facts or where in unread
    ]
    if question:
        for where, described, of_rows in (ask or _ask)(question):
            if where not in facts:
                facts[where] = described
                _remember(*requests[where], described)
            if where in unread:
                notes[where] = of_rows
                _write(_notes_file(models[where], unread[where]), of_rows)
    seen = dict.fromkeys(note for where in readers for note in notes.get(where, []))
    return Described({where: facts[where] for where in models}, tuple(seen))


def _request(
    where: str,
    model: ModelConfig,
    micro_batch: MicroBatch | None,
    facts: ModelFacts | None,
    rows: RowsRequest | None,
) -> dict[str, Any]:
    parts = {"model": model, "micro_batch": micro_batch, "facts": facts, "rows": rows}
    return {"where": where, **{name: part and part.model_dump(mode="json") for name, part in parts.items()}}


COMMAND = [sys.executable, "-m", "scaleup.describe.answer"]


def _ask(question: Question) -> Answers:
    answer, stderr = asked(COMMAND, json.dumps(question))
    if answer.returncode != 0 or not answer.stdout.strip():
        raise ScaleupError(_crashed(question, stderr.cause(answer.returncode), stderr.text))
    sys.stderr.write(stderr.text)
    yield from _answers(question, answer.stdout.strip().splitlines()[-1])


class Describer:
    """Answers many questions from one process of the data plane, which starts with the first of them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Describer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate()  # it ends with its questions
            self._stack.close()
            sys.stderr.write(self._stderr.text)

    def ask(self, question: Question) -> Answers:
        """Yields the answers as `describe_models` takes them. Raises ScaleupError with what the data plane found, or
        with the cause if it broke down."""
        if self._process is None:
            self._stderr = self._stack.enter_context(kept_stderr())
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr.descriptor,
                text=True,
                env=python_environment(),
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            print(json.dumps(question), file=self._process.stdin, flush=True)
        line = next((line for line in self._process.stdout if line.startswith('{"facts"')), "")  # others are noise
        if not line:
            code = self._process.wait()
            self._process = None
            self._stack.close()
            raise ScaleupError(_crashed(question, self._stderr.cause(code), self._stderr.text))
        yield from _answers(question, line)


def _answers(question: Question, line: str) -> Answers:
    reply = json.loads(line)
    if reply["problems"]:
        raise ScaleupError([Problem(**problem) for problem in reply["problems"]])
    for request, facts, notes in zip(question, reply["facts"], reply["notes"], strict=True):
        yield request["where"], ModelFacts.model_validate(facts), notes


def _crashed(question: Question, cause: str, text: str) -> Problem:
    """Returns that the process which was asked has broken down: for want of memory, with an installation, or by a
    mistake of ours."""
    log = cache_folder() / LOG
    remedy = "see what `scaleup doctor` says of this machine"
    with suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        write_text(log, text, is_durable=False)
        remedy += f"; all that it said is in {log}" if text else ""
    wheres = ", ".join(request["where"] for request in question)
    return Problem(wheres, f"looking at it failed: {cause[:LONGEST_CAUSE]}", remedy)


def _notes_file(model: ModelConfig, rows: RowsRequest) -> Path | None:
    """Returns where the notes on rows are cached; None if the rows or the model could change unnoticed."""
    parts = [rows.model_dump_json()]
    for split in {**rows.splits, **rows.tokens, **({"train": ""} if rows.in_context else {})}:
        for source in getattr(rows.data, split) or []:
            path = local_path(rows.data, source, split)
            stamps = {file: stamp_of(file) for file in data_files(path)} if path else {}
            if not all(stamps.values()) or path is None:
                return None
            parts += [f"{file} {stamp}" for file, stamp in stamps.items()]
    if (template := rows.data.chat_template) is not None:
        parts.append(read_template(template) if is_template_file(template) else metadata.version("trl"))
    return _cached(model, parts)


def _remembered_notes(model: ModelConfig, rows: RowsRequest) -> list[str] | None:
    try:
        file = _notes_file(model, rows)
        notes = read_json(file) if file else None
    except (ScaleupError, OSError, ValueError):
        return None
    return notes if isinstance(notes, list) else None


def _cache_file(model: ModelConfig, micro_batch: MicroBatch | None) -> Path | None:
    """Returns where the facts are cached; None if they could change unnoticed."""
    return _cached(model, [micro_batch.model_dump_json() if micro_batch else ""])


def _cached(model: ModelConfig, parts: Sequence[str]) -> Path | None:
    """Returns where an answer is cached that follows from a model and `parts`."""
    versions = (metadata.version(name) for name in ("transformers", "torch", "peft"))
    parts = [model.model_dump_json(), *versions, *parts]
    adapter = getattr(getattr(model, "adapter", None), "path", None)
    for path in filter(None, (model.path, model.tokenizer, adapter)):
        marks = _marks(path)
        if marks is None:
            return None
        parts += marks
    package = Path(scaleup.__file__).parent
    # What an answer follows from: how models are described and built, and the losses whose footprint is traced.
    sources = sorted(
        file for room in ("describe", "models", "train", "data", "records") for file in (package / room).glob("*.py")
    )
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
    _write(_cache_file(model, micro_batch), facts.model_dump(mode="json"))


def _write(file: Path | None, answer: Any) -> None:
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, answer)
    except OSError:
        return  # a cache that cannot be written only costs time
