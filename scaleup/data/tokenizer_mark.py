"""A tokenizer goes in; what tells it from every other comes out."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from scaleup.data.chat import ChatTemplate


def tokenizer_mark(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Returns what tells a tokenizer, with its chat template, from every other: the files that it would be saved as. A
    template that shows the date makes other text each day."""
    marks = [type(tokenizer).__name__]
    if tokenizer.is_fast:
        backend: Any = tokenizer.backend_tokenizer
        backend.no_padding()  # what an earlier call has left is no setting
        backend.no_truncation()
    with tempfile.TemporaryDirectory(prefix="scaleup-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        marks += _files(Path(folder))
    if tokenizer.chat_template and ChatTemplate(tokenizer).shows_date:
        marks.append(date.today().isoformat())
    return marks


def _files(folder: Path) -> Iterator[str]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            content = hashlib.blake2b(file.read_bytes(), digest_size=20).hexdigest()
            yield f"{file.relative_to(folder)} {content}"
