"""Checks of a run's data before launch: every file that cannot be read, every row that cannot be used. Mistakes in the
config's row formats are reported by `format_problems`, not repeated here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from scaleup.config.data import DataConfig, RowFormat, SourceConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.records.arrow_rows import splits_in
from scaleup.records.chat_notes import ChatNotes
from scaleup.records.chats import Chat
from scaleup.records.examples import (
    Labelled,
    UnpairedPreference,
    example_maker,
    labelled_maker,
    prompt_maker,
    row_problem,
    unpaired_maker,
)
from scaleup.records.format_rules import holds_class, holds_preferences, is_unpaired, recognitions, row_format
from scaleup.records.formats import data_files, local_path, read_rows
from scaleup.records.labels import Label, SeenLabels, Targets
from scaleup.records.preferences import Preferences, preference_maker, reasons
from scaleup.records.template import MissingColumn

NUM_ROWS_LISTED = 5
NUM_STREAMED_ROWS = 10_000

Maker = Callable[[Mapping[str, Any], int], Any]


@dataclass(frozen=True)
class SourceSummary:
    """Describes a source as the config names it, and `file`, where it is on this machine. `rows` is None where they
    were not all counted: a hub name, a long stream. Of preferences, pairs are counted, and those that are left out by
    the reason. `notes`: what its files hold and is not read. `labels`: those of texts with a class."""

    path: str
    rows: int | None
    file: str = field(default="", compare=False)
    left_out: Mapping[str, int] = field(default_factory=Counter)
    notes: Sequence[str] = ()
    labels: SeenLabels = field(default_factory=SeenLabels, compare=False)


@dataclass(frozen=True)
class DataCheck:
    """Holds the problems of the data, each split's sources, and notes."""

    problems: list[Problem]
    sources: dict[str, list[SourceSummary]]
    notes: list[str] = field(default_factory=list)
    """What the user should know of the rows although it is no mistake."""


def check_data(
    data: DataConfig, splits: Sequence[str], max_rows: int | None = None, prompts_only: Container[str] = ()
) -> DataCheck:
    """Reads the splits' local sources once, up to `max_rows` rows each (10,000 when streaming), and reports whatever
    would fail later. `prompts_only`: splits whose rows are answered and need no completion."""
    limit = max_rows or (NUM_STREAMED_ROWS if data.streaming else None)
    problems: list[Problem] = []
    notes = list(recognitions(data, splits))
    sources: dict[str, list[SourceSummary]] = {}
    for split in splits:
        sources[split] = []
        for key, source in _sources(data, split):
            path, maker = local_path(data, source, split), maker_of(data, source, split in prompts_only)
            if path is None:
                sources[split].append(SourceSummary(source.path, None))
                continue
            failures, summary = _check_source(
                source,
                path,
                key,
                limit,
                maker,
                data.split_turns and split not in prompts_only,
                row_format(data, source),
            )
            problems += [*failures, *_idle_keys(source, path, key)]
            notes += summary.notes
            sources[split].append(summary)
    return DataCheck(problems + _leaks(data, splits), sources, notes)


def _idle_keys(source: SourceConfig, path: Path, key: str) -> Iterator[Problem]:
    """Yields keys of hub names that say nothing of a file."""
    where = f"'{path}' is read from this machine, and has none"
    if source.name is not None:
        yield Problem(f"{key}.name", f"is the configuration of a hub's dataset: {where}", "leave it out")
    if source.split is not None and not (path.name == source.split and splits_in(path.parent)):
        yield Problem(f"{key}.split", f"is one of a dataset's: {where}", "leave it out")


def _sources(data: DataConfig, split: str) -> Iterator[tuple[str, SourceConfig]]:
    for place, source in enumerate(getattr(data, split) or []):
        yield f"data.{split}.{place}", source


def maker_of(data: DataConfig, source: SourceConfig, prompts_only: bool) -> Maker | None:
    """Returns what makes examples of a source's rows; None when the format has mistakes: then only the reading is
    checked."""
    try:
        if prompts_only:
            return prompt_maker(data, source)
        form = row_format(data, source)
        if is_unpaired(form):
            return unpaired_maker(data, source)
        if holds_class(form):
            return labelled_maker(data, source)
        return preference_maker(data, source) if holds_preferences(form) else example_maker(data, source)
    except ScaleupError:
        return None


def _check_source(
    source: SourceConfig,
    path: Path,
    key: str,
    limit: int | None,
    maker: Maker | None,
    split_turns: bool,
    form: RowFormat,
) -> tuple[list[Problem], SourceSummary]:
    try:
        data_files(path)
    except ScaleupError as error:
        problems = [Problem(f"{key}.path", f"'{item.where}' {item.what}", item.remedy) for item in error.problems]
        return problems, SourceSummary(source.path, None)
    failures, notes, labels = _Failures(limit), list[str](), SeenLabels(form.label or "label")
    is_whole, num_examples, left_out, chats = True, 0, Counter[str](), ChatNotes()
    desirable = Counter[bool]()
    try:
        for row in islice(read_rows(path, failures.add_line, notes.append), source.max_rows):
            failures.start_row()
            try:
                made = maker(row.values, failures.num_rows - 1) if maker is not None else None
                num_examples += _num_rows(made, split_turns)
                left_out.update(made.left_out if isinstance(made, Preferences) else ())
                chats.add(
                    made.example if isinstance(made, UnpairedPreference) else made,
                    row.values.get(form.tools or "tools"),
                )
                if isinstance(made, Labelled):
                    labels.add(made.label, failures.num_rows, row.where)
                elif isinstance(made, UnpairedPreference):
                    desirable[made.is_desirable] += 1
            except ScaleupError as error:
                failures.add(row.where, error)
    except _Enough:
        is_whole = False
    problems = failures.problems(str(path))
    if not problems and not failures.num_rows:
        problems = [Problem(f"{key}.path", f"'{path}' holds no rows", "name a file with rows")]
    elif not problems and not num_examples and is_whole:
        what = f"'{path}' holds no pair in which one response is preferred ({', '.join(reasons(left_out))})"
        problems = [Problem(f"{key}.path", what, "name a file with preferences")]
    if desirable:
        notes.append(f"{key}: {desirable[True]:,} responses are desirable, and {desirable[False]:,} are not")
    num_rows = num_examples if is_whole else None
    return problems, SourceSummary(source.path, num_rows, str(path), left_out, (*notes, *chats.lines(key)), labels)


def _num_rows(made: Any, split_turns: bool) -> int:
    """Returns how many rows a run makes of one in the file."""
    if isinstance(made, Preferences):
        return len(made.pairs)
    return len(made.answers) if split_turns and isinstance(made, Chat) else 1


def class_problems(check: DataCheck, targets: Targets) -> list[Problem]:
    """Returns the labels of rows that are none of a classifier: the first of each source, and how many more."""
    problems: dict[Problem, None] = {}
    for summary in (each for split in check.sources.values() for each in split):
        first, more = summary.labels.unknown(targets)
        for where, label in first:
            problems[row_problem(where, ScaleupError([targets.fault(summary.labels.column, label)]))] = None
        problems |= dict.fromkeys(more_failing(summary.file, more))
    return list(problems)


def label_counts(check: DataCheck, split: str) -> list[tuple[Label, int]] | None:
    """Returns the labels of a split's rows, each with how many of a source have it; None where not all rows were
    read."""
    summaries = check.sources.get(split, [])
    if any(summary.rows is None for summary in summaries):
        return None
    return [(label, count) for summary in summaries for (_, label), count in summary.labels.counts.items()]


def class_notes(check: DataCheck, targets: Targets) -> list[str]:
    """Returns which labels are taken for a class's number, though they are text."""
    notes = []
    for summary in (each for split in check.sources.values() for each in split):
        if spelled := sorted(summary.labels.spelled(targets)):
            read = ", ".join(f"{label!r} {name}" for label, name in spelled[:NUM_ROWS_LISTED])
            more = ", ..." if len(spelled) > NUM_ROWS_LISTED else ""
            notes.append(f"{summary.path}: labels that are no class's name are its number: {read}{more}")
    return list(dict.fromkeys(notes))


def more_failing(path: str, number: int) -> list[Problem]:
    """Returns the line that counts the failing rows of a file or folder that are not listed; none where all are."""
    return [Problem(path, f"and {number} more {'row fails' if number == 1 else 'rows fail'}")] if number > 0 else []


class _Enough(Exception):
    """Ends the reading of a source once its limit of rows and bad lines is reached."""


class _Failures:
    """Counts the failing rows of one source, and keeps the first of them.

    They are kept apart by the columns they lack, because a column that turns out to be in no row is one mistake, which
    then hides none of the others.
    """

    def __init__(self, limit: int | None) -> None:
        self.num_rows = 0
        self._num_lines = 0
        self._limit = limit
        self._kept: dict[frozenset[str], list[tuple[int, str, list[Problem]]]] = defaultdict(list)
        self._counts: Counter[frozenset[str]] = Counter()

    def start_row(self) -> None:
        self._start_line()
        self.num_rows += 1

    def add_line(self, problem: Problem) -> None:
        """Adds a line that could not be read as a row."""
        self._start_line()
        self._add(frozenset({""}), problem.where, [problem])

    def add(self, where: str, error: ScaleupError) -> None:
        """Adds a row of which no example could be made."""
        kind = {problem.where if isinstance(problem, MissingColumn) else "" for problem in error.problems}
        self._add(frozenset(kind), where, error.problems)

    def problems(self, path: str) -> list[Problem]:
        """Returns the columns in no row; then the first failing rows, and how many more there are."""
        absent = self._absent_columns()
        listed = [Problem(path, f"no row has the column '{name}'", remedy) for name, remedy in absent.items()]
        failing = {kind for kind in self._counts if not kind <= absent.keys()}
        rows = sorted((row for kind in failing for row in self._kept[kind]), key=lambda row: row[0])[:NUM_ROWS_LISTED]
        for _, where, problems in rows:
            listed.append(_at_row(where, [problem for problem in problems if not _lacks(problem, absent)]))
        return [*listed, *more_failing(path, sum(self._counts[kind] for kind in failing) - len(rows))]

    def _start_line(self) -> None:
        if self._num_lines == self._limit:
            raise _Enough
        self._num_lines += 1

    def _add(self, kind: frozenset[str], where: str, problems: list[Problem]) -> None:
        self._counts[kind] += 1
        if len(self._kept[kind]) < NUM_ROWS_LISTED:
            self._kept[kind].append((self._num_lines, where, problems))

    def _absent_columns(self) -> dict[str, str]:
        num_lacking: Counter[str] = Counter()
        for kind, count in self._counts.items():
            num_lacking.update(dict.fromkeys(kind - {""}, count))
        absent = {name for name, count in num_lacking.items() if count == self.num_rows}
        kept = (problem for rows in self._kept.values() for _, _, problems in rows for problem in problems)
        return {problem.where: problem.remedy for problem in kept if _lacks(problem, absent)}


def _lacks(problem: Problem, columns: Container[str]) -> bool:
    return isinstance(problem, MissingColumn) and problem.where in columns


def _at_row(where: str, problems: list[Problem]) -> Problem:
    """Returns the problems of a row as one with its place, which a line's own problem has already."""
    return problems[0] if problems[0].where == where else row_problem(where, ScaleupError(problems))


LEARNED = ("train", "supervised", "regularization")
"""Names the splits that a model is trained on."""


def _leaks(data: DataConfig, splits: Sequence[str]) -> list[Problem]:
    """Returns files that a model would be trained on and measured with."""
    trained = {
        identity: key
        for split in LEARNED
        if split in splits
        for key, source in _sources(data, split)
        for identity in _identities(data, source, split)
    }
    problems = []
    for split in (split for split in splits if split not in LEARNED):
        for key, source in _sources(data, split):
            for identity in _identities(data, source, split):
                if identity in trained:
                    what = f"'{identity[0]}' is training data too ({trained[identity]}.path)"
                    problems.append(
                        Problem(f"{key}.path", what, "keep held-out rows apart, or use validation_fraction")
                    )
    return problems


def _identities(data: DataConfig, source: SourceConfig, split: str) -> list[tuple[str, ...]]:
    """Returns what a source reads: its files, wherever links and `..` lead, or a hub dataset's configuration and
    split."""
    path = local_path(data, source, split)
    if path is None:
        return [(source.path, source.name or "", source.split or split)]
    try:
        return [(str(file.resolve()),) for file in data_files(path)]
    except ScaleupError:
        return []
