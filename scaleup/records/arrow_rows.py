"""Readers of tables: Parquet and Arrow files, and the folders that `datasets.save_to_disk` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaleup.errors import Problem, ScaleupError
from scaleup.records.csv_rows import header_problem
from scaleup.records.remote import RemotePath
from scaleup.records.rows import Listener, Row, Unreadable

BATCH = 1000
STATE, SPLITS = "state.json", "dataset_dict.json"
"""Name what `save_to_disk` writes beside the rows of a Dataset, and beside the folders of a DatasetDict."""


def parquet_file(file: Path, listener: Listener) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    def batches() -> Iterator[Any]:
        with file.open("rb") as opened, ParquetFile(opened) as table:
            yield table.schema_arrow.names
            yield from table.iter_batches(batch_size=BATCH)

    return _rows(file, "Parquet", batches(), listener)


def arrow_file(file: Path, listener: Listener) -> Iterator[Row]:
    """Yields the rows of an Arrow file, of the streaming format that `datasets` writes or of the other."""
    import pyarrow

    def batches() -> Iterator[Any]:
        with _opened(file) as source:
            is_stream = source.read(6) != b"ARROW1"
            source.seek(0)
            with (pyarrow.ipc.open_stream if is_stream else pyarrow.ipc.open_file)(source) as table:
                yield table.schema.names
                whole = table if is_stream else map(table.get_batch, range(table.num_record_batches))
                for batch in whole:
                    yield from (batch.slice(start, BATCH) for start in range(0, len(batch), BATCH))

    return _rows(file, "Arrow", batches(), listener)


def _opened(file: Path) -> Any:
    """Returns a file for pyarrow, mapped where it lies on this machine."""
    import pyarrow

    return pyarrow.PythonFile(file.open("rb")) if isinstance(file, RemotePath) else pyarrow.memory_map(str(file))


def _rows(file: Path, kind: str, batches: Iterator[Any], listener: Listener) -> Iterator[Row]:
    """Yields the rows of a table: first come the names of its columns, then batches of its rows."""
    import pyarrow

    name, number = str(file), 0
    try:
        if problem := header_problem(name, next(batches)):
            listener.problem(problem)
            return
        for batch in batches:
            for values in _values_of(batch):
                number += 1
                yield Row(f"{name}:row {number}", values)
    except (pyarrow.ArrowException, ValueError) as error:
        where = f"{name}:row {number + 1}" if number else name
        listener.problem(Problem(where, f"is not readable {kind}: {error}", "write the file anew"))


UNHELD = (ValueError, OverflowError, KeyError)
"""Holds what a value raises that Python has no other for: a date after 9999, nanoseconds, an unknown time zone, a map
that has a key twice."""


def _values_of(batch: Any) -> list[dict[str, Any]]:
    """Returns the rows of a batch, a map as the mapping that it is."""
    try:
        return list(batch.to_pylist(maps_as_pydicts="strict"))
    except UNHELD:
        columns = [[_value_of(cell) for cell in column] for column in batch.columns]
        return [dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _value_of(cell: Any) -> Any:
    try:
        return cell.as_py(maps_as_pydicts="strict")
    except UNHELD as error:
        return Unreadable(f"holds a {cell.type} that Python cannot: {error.args[0]}")


def saved_files(folder: Path) -> list[Path] | None:
    """Returns the Arrow files of a folder that `Dataset.save_to_disk` wrote, in their order; None for another folder.

    Raises ScaleupError for one that does not say where all its rows are, and OSError."""
    if splits := splits_in(folder):
        raise ScaleupError.of(str(folder), f"holds the splits {', '.join(splits)}", "name the folder of one")
    state = folder / STATE
    if not state.is_file() or not (folder / "dataset_info.json").is_file():
        return None
    try:
        saved = json.loads(state.read_text(encoding="utf-8"))
        files = [folder / Path(each["filename"]).name for each in saved["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise ScaleupError.of(str(state), "does not say which files hold the rows", "save the dataset anew") from None
    if saved.get("_indices_data_files"):
        raise ScaleupError.of(str(state), "puts the rows in another order than their files", "save the dataset anew")
    return files


def split_folder(path: Path, split: str | None) -> Path:
    """Returns the folder of a split, or of the first one, where `path` is one that `DatasetDict.save_to_disk` wrote;
    else `path`."""
    splits = splits_in(path)
    return path / (split or splits[0]) if splits else path


def splits_in(folder: Path) -> list[str]:
    """Returns the splits of a folder that `DatasetDict.save_to_disk` wrote; none of another."""
    if not (folder / SPLITS).is_file():
        return []
    try:
        return [str(name) for name in json.loads((folder / SPLITS).read_text(encoding="utf-8"))["splits"]]
    except (OSError, ValueError, KeyError, TypeError):
        return sorted(each.name for each in folder.iterdir() if each.is_dir())
