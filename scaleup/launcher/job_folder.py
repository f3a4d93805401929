"""Where a job's files lie: they are read when the job begins, so a job that was submitted keeps a folder of its own."""

from __future__ import annotations

from pathlib import Path

from scaleup.artifacts.files import write_text
from scaleup.config.schema import RunConfig
from scaleup.errors import ScaleupError
from scaleup.launcher.render.job import Files


def next_folder(config: RunConfig, name: str) -> Path:
    """`<runs_dir>/<name>.jobs/<number>`: beside the run's own folder, which must be empty before it begins."""
    parent = Path(config.runs_dir) / f"{name}.jobs"
    taken = [int(folder.name) for folder in parent.glob("*") if folder.name.isdecimal()]
    return parent / str(max(taken, default=0) + 1)


def named_folder(path: Path) -> Path:
    """One that the user names. Raises ScaleupError when there is something in it, which a job may yet read."""
    folder = path.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is no folder"
        raise ScaleupError.of(f"--output {path}", what, "name another: a job that waits may read what is there")
    return folder


def write_job(folder: Path, files: Files) -> None:
    """Raises ScaleupError where nothing can be written."""
    try:
        (folder / "logs").mkdir(parents=True)
        for name, text in files.items():
            write_text(folder / name, text)
    except OSError as error:
        raise ScaleupError.of(str(folder), f"cannot be written: {error.strerror}", "name another folder") from None
