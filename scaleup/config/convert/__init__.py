"""This package turns configs of other trainers into ours: a table of keys a trainer, and what carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaleup.config.convert.axolotl import AXOLOTL
from scaleup.config.convert.commented import commented
from scaleup.config.convert.draft import Trainer, drafted
from scaleup.config.convert.llamafactory import LLAMA_FACTORY
from scaleup.config.convert.torchtune import TORCHTUNE
from scaleup.config.convert.trl import TRL
from scaleup.config.load import read_mapping
from scaleup.config.mistakes import suggestion
from scaleup.errors import ScaleupError

TRAINERS: dict[str, Trainer] = {trainer.name: trainer for trainer in (AXOLOTL, LLAMA_FACTORY, TORCHTUNE, *TRL)}


def convert(
    file: Path, trainer: str | None = None, num_processes: int | None = None, output: Path | None = None
) -> str:
    """Returns the config that another trainer's file becomes, and writes it where `output` names a new file.

    Raises ScaleupError for a file that cannot be read, is of no trainer that is known, or of several, or describes what
    is not converted; and for an `output` that is there already."""
    raw = read_mapping(file, f"name a config of {', '.join(TRAINERS)}")
    draft = drafted(trainer_of(raw, file, trainer), raw)
    if num_processes is not None:
        draft.put("parallel.num_processes", num_processes)
    text = commented(draft, file.name, str(output or "FILE"))
    if output is not None:
        _write(output, text)
    return text


def trainer_of(raw: Mapping[str, Any], file: Path, named: str | None = None) -> Trainer:
    """Returns the trainer whose config a mapping is: the one that is named, or the only one with such keys."""
    if named is not None:
        if named not in TRAINERS:
            remedy = suggestion(named, list(TRAINERS)) or f"use one of {', '.join(TRAINERS)}"
            raise ScaleupError.of("--from", f"{named!r} is no trainer whose configs are converted", remedy)
        return TRAINERS[named]
    possible = [trainer for trainer in TRAINERS.values() if _claims(trainer, raw)]
    if len(possible) == 1:
        return possible[0]
    if possible:
        which = " and of ".join(trainer.name for trainer in possible)
        raise ScaleupError.of(str(file), f"has keys of {which}", "say which it is: --from NAME")
    if {"stage", "model"} <= set(raw) or "pipeline" in raw or "study" in raw:
        raise ScaleupError.of(str(file), "is a config of scaleup already", f"run it: scaleup run {file}")
    known = ", ".join(TRAINERS)
    raise ScaleupError.of(
        str(file), f"has no key by which configs of {known} are known", "say which it is: --from NAME"
    )


def _claims(trainer: Trainer, raw: Mapping[str, Any]) -> bool:
    return not trainer.signature.isdisjoint(raw) and trainer.unless.isdisjoint(raw)


def _write(output: Path, text: str) -> None:
    try:
        with output.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise ScaleupError.of(str(output), "exists already", "name another: -o FILE") from None
    except OSError as error:
        raise ScaleupError.of(str(output), f"cannot be written: {error.strerror}", "name a file that can") from None
