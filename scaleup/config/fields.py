"""What sections are made of: the base class, and the types of single values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


def _usable_path(value: str) -> str:
    """Refuses what cannot even be asked after, so that whoever looks at the path later need not expect it."""
    try:
        Path(value).expanduser().is_dir()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"is no usable path: {getattr(error, 'strerror', None) or error}") from None
    if "\0" in value:
        raise ValueError("is no usable path: it holds a null character")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Count = Annotated[Int, Field(ge=1)]
Port = Annotated[Int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Text = Annotated[str, Field(min_length=1)]
PathText = Annotated[Text, AfterValidator(_usable_path)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
