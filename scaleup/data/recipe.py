"""What the tokens of a source follow from goes in; a key comes out, another for rows that would become other tokens."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import metadata
from pathlib import Path

import scaleup
from scaleup.artifacts.data_file import file_mark
from scaleup.config.data import DataConfig, SourceConfig
from scaleup.data.sources import hub_rows
from scaleup.data.tokenization import RowEncoder
from scaleup.records.examples import row_format
from scaleup.records.formats import data_files, local_path

SETTINGS = ("max_length", "too_long", "completion_only_loss", "train_on", "split_turns")
"""Names what of the data section, beside its rows' formats and the chat template, says what tokens become of a row."""
LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow")


def key_of(data: DataConfig, source: SourceConfig, split: str, encoder: RowEncoder) -> str:
    """Returns the key of a source's tokens. Raises ScaleupError as looking for the source's files does."""
    parts = {
        "rows": _contents(data, source, split),
        "max_rows": source.max_rows,
        "format": row_format(data, source).model_dump(mode="json"),
        "settings": data.model_dump(mode="json", include=set(SETTINGS)),
        "encoder": encoder.recipe(),
        "code": _code(),
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=20).hexdigest()


def _contents(data: DataConfig, source: SourceConfig, split: str) -> list[str]:
    """Returns what tells the rows of a source from others: of its files, in their order, or of a hub's dataset."""
    path = local_path(data, source, split)
    if path is not None:
        return [file_mark(file).blake2b for file in data_files(path)]
    return [str(hub_rows(source, split, streaming=False)._fingerprint)]


@cache
def _code() -> list[str]:
    """Returns what changes with the code that makes tokens of rows: ours, and of the libraries beneath it."""
    package = Path(scaleup.__file__).parent
    sources = sorted(file for room in ("data", "records") for file in (package / room).glob("*.py"))
    digest = hashlib.blake2b(digest_size=20)
    for file in (*sources, package / "models" / "scoring.py"):
        digest.update(file.read_bytes())
    return [digest.hexdigest(), *(metadata.version(name) for name in LIBRARIES)]
