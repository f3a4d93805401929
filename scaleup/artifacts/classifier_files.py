"""This module reads and writes what lies beside classifiers: `reward.json` beside a reward model, which tells what it
reads, and how its scores are brought to mean 0 and spread 1; `labels.json` beside an adapter, whose head PEFT saves
without its labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scaleup.artifacts.files import read_json
from scaleup.config.data import ClassProblem
from scaleup.errors import ScaleupError

REWARD_FILE = "reward.json"
LABELS_FILE = "labels.json"


class SavedReward(BaseModel):
    """Holds how a model is used as a reward. The defaults are those of a classifier that no reward run made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: Annotated[str, Field(min_length=1)] = "{prompt}{response}"
    max_length: Annotated[int, Field(ge=2)] = 512
    mean: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Is the mean of the scores of the reference samples."""
    std: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    label: str | None = None
    score: Literal["logit", "probability"] = "logit"


class SavedLabels(BaseModel):
    """Holds what a head in an adapter is over."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names them in the order of the logits."""
    problem: ClassProblem | None = None


S = TypeVar("S", bound=BaseModel)


def read_reward(folder: Path) -> SavedReward | None:
    """Read a model folder's file; None if there is none. Raises ScaleupError at the file if it cannot be used."""
    return _read(folder / REWARD_FILE, SavedReward)


def read_labels(folder: Path) -> SavedLabels | None:
    """Read an adapter folder's file, as `read_reward` does."""
    return _read(folder / LABELS_FILE, SavedLabels)


def _read(file: Path, kind: type[S]) -> S | None:
    if not file.is_file():
        return None
    try:
        return kind.model_validate(read_json(file))
    except (OSError, ValueError, ValidationError) as error:
        what = f"cannot be read: {' '.join(str(error).split())[:200]}"
        raise ScaleupError.of(str(file), what, "train the model again, or mend the file") from error
