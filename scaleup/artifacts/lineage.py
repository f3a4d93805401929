"""This module holds what a run was made from: `lineage.json` in its folder is written at each start, and the manifest
of a finished run carries it on."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from pydantic import BaseModel, ConfigDict

import scaleup
from scaleup.artifacts.data_file import OF_LINES, SourceMark


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Rows(_Frozen):
    """Stands for the rows of one source. What each of its files holds is in `data.json`."""

    path: str
    num_files: int
    num_rows: int | None
    """Is None where rows are not lines, or could not be counted."""
    hash: str | None
    """Is of what all files hold together; of a hub's dataset its revision, if it could be had."""

    @classmethod
    def of(cls, mark: SourceMark) -> Rows:
        if mark.is_hub or mark.rows is not None:
            return cls(path=mark.path, num_files=0, num_rows=mark.rows, hash=mark.blake2b or mark.revision)
        whole = hashlib.blake2b("".join(file.blake2b for file in mark.files).encode(), digest_size=20).hexdigest()
        counts = [file.lines for file in mark.files if Path(file.name).suffix.lower() in UNTITLED]
        rows = sum(count or 0 for count in counts) if len(counts) == len(mark.files) else None
        return cls(path=mark.path, num_files=len(mark.files), num_rows=rows, hash=whole)


UNTITLED = tuple(suffix for suffix in OF_LINES if suffix not in (".csv", ".tsv"))
"""Names the files of which every line is a row: without a line of titles."""


class Code(_Frozen):
    version: str
    commit: str | None = None
    """Is that of the git repository the package lies in, with `-dirty` where files differ from it."""

    @classmethod
    def of_this(cls) -> Code:
        """Returns what this process runs; an installed package has no commit."""
        root = Path(scaleup.__file__).parent.parent
        if not (root / ".git").exists():
            return cls(version=scaleup.__version__)
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            return cls(version=scaleup.__version__)
        return cls(version=scaleup.__version__, commit=done.stdout.strip() or None)


class Host(_Frozen):
    name: str
    num_cores: int
    gpus: tuple[str, ...] = ()


class Parent(_Frozen):
    """Stands for a finished run whose folder a config names."""

    run: str
    manifest: str
    """Is a hash of its manifest when this run started: another one tells that it was made again."""

    @property
    def is_stale(self) -> bool:
        """Tells whether the parent was made again since, or is gone."""
        return manifest_hash(Path(self.run)) != self.manifest


class Lineage(_Frozen):
    config: str
    """Is a hash of the resolved config, its name and place aside."""
    data: dict[str, Rows]
    """Maps the key of a source (data.train.0) -> its rows."""
    code: Code
    packages: dict[str, str]
    """Maps the packages that compute, and Python -> their versions."""
    machine: Host
    """Is the first node."""
    parents: dict[str, Parent] = {}
    """Maps the config key of a model, or of rows, that is in a finished run's folder -> that run."""


def manifest_hash(run: Path) -> str | None:
    """Returns what tells a finished run's manifest from any other; None where there is none."""
    try:
        return hashlib.blake2b((run / "manifest.json").read_bytes(), digest_size=20).hexdigest()
    except OSError:
        return None
