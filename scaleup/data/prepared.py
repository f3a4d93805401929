"""A source of the config goes in; its rows come out as tokens, in a mapped file of the user's cache: checked and
tokenized once on a node, or once for all nodes that share the cache, by whoever comes first."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scaleup.artifacts.data_file import file_mark
from scaleup.artifacts.token_cache import TokenCache
from scaleup.config.data import DataConfig, SourceConfig
from scaleup.data.recipe import key_of
from scaleup.data.rows import Rows
from scaleup.data.token_file import TokenFile, TokenWriter
from scaleup.data.tokenization import RowEncoder
from scaleup.data.tokenize import MOST_PROBLEMS, tokenized
from scaleup.distributed.progress import Progress
from scaleup.errors import Problem, ScaleupError
from scaleup.records.formats import data_files, local_path

TOKENIZING, WAITING = "tokenizing rows", "waiting for rows that another process tokenizes"


@dataclass(frozen=True)
class Prepared:
    """Holds a source's rows, and counts those that were left out, by the reason."""

    rows: Rows
    left_out: Counter[str]

    @property
    def num_dropped(self) -> int:
        return sum(self.left_out.values())


def prepared_rows(
    data: DataConfig,
    source: SourceConfig,
    split: str,
    encoder: RowEncoder,
    progress: Progress | None = None,
) -> Prepared:
    """Returns the rows of a source.

    Raises ScaleupError with the first rows that cannot be used, when none is left, and where the cache cannot be
    written."""
    progress = progress or Progress(None, enabled=False)
    key = key_of(data, source, split, encoder)
    make = partial(_make, data, source, split, encoder, progress)
    say = partial(progress.say, of_any_rank=True)  # damage is seen by the rank that comes first
    held = TokenCache().held(key, make, lambda: progress.report(WAITING), say)
    return Prepared(TokenFile(held.entry.rows_file, held), Counter(held.entry.about["left_out"]))


def _make(
    data: DataConfig, source: SourceConfig, split: str, encoder: RowEncoder, progress: Progress, file: Path
) -> Mapping[str, Any]:
    """Tokenizes a source's rows into a file. Returns what is to be known of them."""
    left_out: Counter[str] = Counter()
    total = _num_rows(data, source, split)
    problems: list[Problem] = []
    writer, num_read = None, 0
    for part in tokenized(data, source, split, encoder):
        problems += part.problems
        if len(problems) >= MOST_PROBLEMS:
            break
        left_out.update(part.left_out)
        if part.form is not None:
            writer = writer or TokenWriter(file, part.form)
            writer.add(part.columns, part.num_rows)
        num_read += part.num_read
        progress.report(TOKENIZING, num_read, total)
    if problems:
        raise ScaleupError(problems[:MOST_PROBLEMS])
    if writer is None:
        what = f"no row of {source.path} fits max_length {data.max_length} with a label left"
        raise ScaleupError.of(f"data.{split}", what, "raise data.max_length")
    writer.close()
    return {"source": source.path, "split": split, "rows": writer.num_rows, "left_out": dict(left_out)}


def _num_rows(data: DataConfig, source: SourceConfig, split: str) -> int | None:
    """Returns how many rows a source has, about, where that is known: of files whose rows are lines."""
    path = local_path(data, source, split)
    if path is None:
        return None
    lines = [file_mark(file).lines for file in data_files(path)]
    if any(count is None for count in lines):
        return None
    return min(sum(count or 0 for count in lines), source.max_rows or sys.maxsize)
