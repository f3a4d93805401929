"""Finding the files of a source, and reading them one row at a time, each with the line it is on."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from scaleup.config.data import DataConfig, SourceConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.records.arrow_rows import SPLITS, STATE, arrow_file, parquet_file, saved_files, split_folder, splits_in
from scaleup.records.csv_rows import csv_file, tsv_file
from scaleup.records.json_rows import json_file, json_lines
from scaleup.records.remote import remote_path
from scaleup.records.rows import Listener, Row, ignore_note, raise_problem
from scaleup.records.text_files import COMPRESSIONS, UNREADABLE, OtherContentError

Reader = Callable[[Path, Listener], Iterator[Row]]

TEXT_READERS: dict[str, Reader] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_file,
    ".csv": csv_file,
    ".tsv": tsv_file,
}
READERS: dict[str, Reader] = {
    **TEXT_READERS,
    **{text + packed: reader for text, reader in TEXT_READERS.items() for packed in COMPRESSIONS},
    ".parquet": parquet_file,
    ".arrow": arrow_file,
}
"""Maps how a file's name ends -> what reads it."""
KINDS = f"{', '.join(TEXT_READERS)}, each also with {', '.join(COMPRESSIONS)} behind it; .parquet or .arrow"
INFO = {"dataset_info.json", "dataset_infos.json"}
METADATA = {*INFO, STATE, SPLITS}
"""Names what `datasets` writes about a dataset beside its rows."""
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def local_path(data: DataConfig, source: SourceConfig, split: str | None) -> Path | None:
    """Returns the file or folder that a source of a split means, whether it exists or not, also on another machine;
    None when it is a `datasets` hub name. No split means any one of a folder that holds several."""
    if (remote := remote_path(source.path)) is not None:
        return remote
    path = _expanded(data.root) / _expanded(source.path)
    try:
        exists = os.path.lexists(path)  # a link that leads nowhere is no hub name
        path = split_folder(path, source.split or split)
    except OSError:  # there, in a folder that may not be searched
        exists = True
    if exists or _kind(path) is not None or source.path.startswith(("/", "./", "../", "~")):
        return path
    return None if HUB_NAME.fullmatch(source.path) else path


def data_files(path: Path) -> list[Path]:
    """Returns the file itself, or the data files directly in a folder by name; of a folder that `save_to_disk` wrote,
    those with its rows. Raises ScaleupError when there is none."""
    try:
        if path.is_dir():
            saved = saved_files(path)
            if not (files := _files_in(path) if saved is None else saved):
                raise ScaleupError.of(str(path), "is a folder without data files", f"it needs files named {KINDS}")
            return files
        if path.is_file():
            if _kind(path) is None:
                raise ScaleupError.of(str(path), "is no file of a known kind", f"name it {KINDS}")
            return [path]
        if path.exists():
            raise ScaleupError.of(str(path), "is no file: a pipe, a socket or a device", "name a file, or a folder")
        splits = splits_in(path.parent)
        others = splits or [other.name for other in path.parent.glob("*")]
    except OSError as error:
        raise ScaleupError.of(
            str(path), f"cannot be read: {error.strerror}", "see to the file and its permissions"
        ) from None
    near = difflib.get_close_matches(path.name, others, n=1)
    otherwise = f"its splits are {', '.join(others)}" if splits else "relative paths start from data.root"
    if not str(path).isascii() and (encoding := sys.getfilesystemencoding()) != "utf-8":
        near, otherwise = [], f"this locale's file names are in {encoding}: export LC_ALL=C.UTF-8 for those in UTF-8"
    remedy = f"did you mean '{near[0]}'?" if near else otherwise
    raise ScaleupError.of(str(path), "does not exist", remedy)


def read_rows(
    path: Path, on_error: Callable[[Problem], None] | None = None, on_note: Callable[[str], None] | None = None
) -> Iterator[Row]:
    """Yields the rows of a file or folder lazily. A bad line raises ScaleupError; with `on_error` it is reported there
    instead, and reading goes on where it can. `on_note` hears what is left aside."""
    listener = Listener(on_error or raise_problem, on_note or ignore_note)
    for file in data_files(path):
        kind = _kind(file)
        assert kind is not None, "data_files has looked at it"
        try:
            yield from READERS[kind](file, listener)
        except OtherContentError as error:
            listener.problem(Problem(str(file), error.what, error.remedy))
        except UNREADABLE as error:
            what = f"cannot be read: {getattr(error, 'strerror', None) or error}"
            listener.problem(Problem(str(file), what, "see to the file: is it whole, may it be read?"))
        except ModuleNotFoundError as error:
            what = f"is read with {error.name}, not installed here"
            listener.problem(Problem(str(file), what, "pip install 'scaleup[train]'"))


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~name` of an unknown user: reported later as a path that does not exist
        return Path(path)


def _kind(file: Path) -> str | None:
    """Returns how a file's name ends, if that is of a known kind."""
    ending = "".join(file.suffixes[-2:]).lower()
    return next((kind for kind in (ending, file.suffix.lower()) if kind in READERS), None)


def _files_in(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if _is_data_file(file))
    names = {file.name for file in files}
    return [file for file in files if not (names & INFO and file.name in METADATA)]


def _is_data_file(file: Path) -> bool:
    return _kind(file) is not None and not file.name.startswith(".") and file.is_file()
