"""Files of generations go in; items come out, each a prompt with the answers that are to be judged side by side."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import read_json, write_json
from scaleup.errors import Problem, ScaleupError
from scaleup.records.formats import read_rows
from scaleup.records.rows import Row
from scaleup.records.turns import read_tools, read_turns, text_faults

GENERATIONS = "generations.jsonl"
BESIDE_ANSWERS = ("id", "prompt", "tools")
COLUMNS = ("completion", "completions")
"""Name the columns of a model alone; every other one is an adapter's, by its name."""
MOST_ANSWERS = 9
"""Is how many answers have a key of their own, 1 to 9."""
MOST_SHOWN = 5
"""Bounds how many mistakes of a kind are listed of one file; the others are counted."""

Prompt = str | list[dict[str, Any]]
Key = tuple[str, int]
"""Stands for a prompt: what it says, as JSON, and how often the file had it before."""


@dataclass(frozen=True)
class Answer:
    """Holds one text, and which models wrote it: two that wrote the same are judged once."""

    text: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Item:
    """Holds a prompt and at least two different answers to it."""

    id: int
    """Is the prompt's place in the files, from 0."""
    prompt: Prompt
    answers: tuple[Answer, ...]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class ItemSet:
    """Holds what all labellers of a folder judge."""

    seed: int
    items: tuple[Item, ...]
    num_equal: int = 0
    """Counts prompts that all models answered with the same words: there is nothing to judge."""

    @property
    def models(self) -> list[str]:
        """Returns the models' names, in the order of the files."""
        return list(dict.fromkeys(model for item in self.items for answer in item.answers for model in answer.models))

    def save(self, file: Path) -> None:
        write_json(file, asdict(self))

    @classmethod
    def read(cls, file: Path) -> ItemSet:
        """Returns what `save` wrote. Raises ScaleupError if the file holds something else."""
        try:
            raw = read_json(file)
            items = tuple(
                Item(
                    int(each["id"]),
                    each["prompt"],
                    tuple(Answer(answer["text"], tuple(answer["models"])) for answer in each["answers"]),
                    each["tools"],
                )
                for each in raw["items"]
            )
            return cls(int(raw["seed"]), items, int(raw["num_equal"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"cannot be read: {type(error).__name__}: {error}"
            raise ScaleupError.of(str(file), what, "name another folder with -o") from None


@dataclass
class _Asked:
    """Collects the answers of all files to one prompt."""

    prompt: Prompt
    tools: list[dict[str, Any]] | None
    models: dict[str, list[str]] = field(default_factory=dict)
    """Maps a text -> the models that wrote it."""


def read_items(files: Sequence[Path], seed: int) -> ItemSet:
    """Returns the items of files of generations, or of the runs that wrote them: columns `prompt`, and `completion`,
    `completions` or one for each adapter. Rows of several files are put together by their prompts.

    Raises ScaleupError with all mistakes of all files."""
    problems: list[Problem] = []
    places = [_generations_of(path, problems) for path in files]
    if len(set(files)) < len(files):
        problems.append(Problem("ANSWERS", "names a file twice", "name each once"))
    asked: dict[Key, _Asked] = {}
    readings = []
    for path, place in zip(files, places, strict=True):
        reading = _Reading("" if len(files) == 1 else str(path), asked, problems)
        if place is not None:
            reading.read(place)
        readings.append(reading)
    if not problems:
        problems += _unpaired(readings)
    if not problems and any(sum(map(len, each.models.values())) < 2 for each in asked.values()):
        remedy = "name files of several models, or generate with generation.num_return_sequences=2"
        problems.append(Problem("ANSWERS", "hold one answer a prompt: there is nothing to compare it with", remedy))
    if not problems and not asked:
        problems.append(Problem("ANSWERS", "hold no row", "name a file that stage: generate wrote"))
    if problems:
        raise ScaleupError(problems)
    items = [
        Item(number, each.prompt, tuple(Answer(text, tuple(by)) for text, by in each.models.items()), each.tools)
        for number, each in enumerate(asked.values())
    ]
    differing = tuple(item for item in items if len(item.answers) > 1)
    if not differing:
        raise ScaleupError.of("ANSWERS", "are the same words for every prompt", "name answers of other models")
    return ItemSet(seed, differing, len(items) - len(differing))


def _generations_of(path: Path, problems: list[Problem]) -> Path | None:
    """Returns the file of rows that is meant: of a run its own, or those of its newest generation."""
    if not path.is_dir():
        return path
    numbers = sorted(int(each.name) for each in (path / "generations").glob("*") if each.name.isdecimal())
    places = [path / GENERATIONS, *(path / "generations" / str(number) / GENERATIONS for number in reversed(numbers))]
    if (found := next((place for place in places if place.is_file()), None)) is None:
        problems.append(Problem(str(path), f"has no {GENERATIONS}", f"scaleup generate {path}, or name a file of rows"))
    return found


class _Reading:
    """Adds the answers of one file to those of all. A prompt that comes again in it is another item."""

    def __init__(self, name: str, asked: dict[Key, _Asked], problems: list[Problem]) -> None:
        self._name, self._asked, self._problems = name, asked, problems
        self._times: Counter[str] = Counter()
        self._num_problems = 0
        self.where: dict[Key, str] = {}
        """Maps each prompt -> the line it stands in."""

    def read(self, file: Path) -> None:
        try:
            for row in read_rows(file, self._refuse):
                self._add(row)
        except ScaleupError as error:  # there is no such file
            self._problems += error.problems
        if self._num_problems > MOST_SHOWN:
            self._problems.append(Problem(str(file), f"has {self._num_problems - MOST_SHOWN} more mistakes"))

    def _add(self, row: Row) -> None:
        try:
            prompt, tools = _prompt(row), read_tools(None, row.values)
            answers = list(_answers(row, self._name))
        except ScaleupError as error:
            for problem in error.problems:
                self._refuse(Problem(f"{row.where}: {problem.where}", problem.what, problem.remedy))
            return
        said = json.dumps([prompt, tools], sort_keys=True)
        key = said, self._times[said]
        self._times[said] += 1
        self.where[key] = row.where
        place = self._asked.setdefault(key, _Asked(prompt, tools))
        for model, text in answers:
            place.models.setdefault(text, []).append(model)
        if len(place.models) > MOST_ANSWERS:
            what = f"has more than {MOST_ANSWERS} answers, which is how many have a key"
            self._refuse(Problem(row.where, what, "compare fewer models, or fewer answers of each"))

    def _refuse(self, problem: Problem) -> None:
        self._num_problems += 1
        if self._num_problems <= MOST_SHOWN:
            self._problems.append(problem)


def _prompt(row: Row) -> Prompt:
    prompt = row.values.get("prompt")
    if isinstance(prompt, list):
        read_turns("prompt", prompt)
        return prompt
    if not isinstance(prompt, str):
        raise ScaleupError.of("prompt", "is no text and no list of messages", "write rows as stage: generate does")
    if faults := text_faults("prompt", prompt):
        raise ScaleupError(faults)
    return prompt


def _answers(row: Row, name: str) -> Iterator[tuple[str, str]]:
    """Yields each answer of a row after its model's name: that of the file, the adapter's, and of several answers of
    one model their number."""
    columns = [key for key in row.values if key not in BESIDE_ANSWERS]
    if own := [key for key in COLUMNS if key in columns]:
        columns = own
    if not columns:
        what = "is not there, nor completions, nor a column of an adapter"
        raise ScaleupError.of("completion", what, "write rows as stage: generate does")
    problems = []
    for column in columns:
        model = name if column in COLUMNS else f"{name}:{column}" if name else column
        value = row.values[column]
        texts = value if isinstance(value, list) and value else [value]
        for number, text in enumerate(texts, 1):
            shown = f"{model}#{number}".lstrip("#") if len(texts) > 1 else model or "model"
            if not isinstance(text, str):
                problems.append(Problem(column, "holds an answer that is no text", "write text, or a list of texts"))
            elif faults := text_faults(column, text):
                problems += faults
            else:
                yield shown, text
    if problems:
        raise ScaleupError(problems)


def _unpaired(readings: Sequence[_Reading]) -> Iterator[Problem]:
    """Yields the rows whose prompt another of the files lacks."""
    count = Counter(key for reading in readings for key in reading.where)
    for reading in readings:
        alone = [where for key, where in reading.where.items() if count[key] < len(readings)]
        for where in alone[:MOST_SHOWN]:
            yield Problem(where, "has a prompt that not all files answer", "generate all of them from the same rows")
        if len(alone) > MOST_SHOWN:
            more = f"{len(alone) - MOST_SHOWN} more lines have a prompt that not all files answer"
            yield Problem(alone[0].rpartition(":")[0], more)
