"""This package holds commented configs to start from, by stage (`scaleup init`). One YAML file per stage is beside
this."""

from __future__ import annotations

import re
from pathlib import Path

from scaleup.config.mistakes import suggestion
from scaleup.config.stages import STAGES
from scaleup.errors import ScaleupError

FOLDER = Path(__file__).parent


def write_starter(stage: str, file: Path | None = None) -> Path:
    """Writes the config of a stage to start from, by default to `<stage>.yaml`, and returns where it is.

    Raises ScaleupError for a name that is no stage, and where the file exists or cannot be written."""
    if stage not in STAGES:
        remedy = suggestion(stage, list(STAGES)) or f"use one of {', '.join(STAGES)}"
        raise ScaleupError.of("STAGE", f"{stage!r} is no stage", remedy)
    file = file or Path(f"{stage}.yaml")
    text = (FOLDER / f"{stage}.yaml").read_text(encoding="utf-8")
    text = re.sub("FILE( *)", lambda match: f"{file}".ljust(len(match[0]) - 2) + match[1][-2:], text)
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise ScaleupError.of(str(file), "exists already", f"name another: scaleup init {stage} FILE") from None
    except OSError as error:
        raise ScaleupError.of(str(file), f"cannot be written: {error.strerror}", "name a file that can") from None
    return file
