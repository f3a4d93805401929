"""This module holds the base class of sections, and the types of single values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


def _usable_path(value: str) -> str:
    """Refuses a path that the file system cannot even look up, so that later code need not expect one."""
    try:
        Path(value).expanduser().is_dir()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"is no usable path: {getattr(error, 'strerror', None) or error}") from None
    if "\0" in value:
        raise ValueError("is no usable path: it holds a null character")
    return value


@dataclass(frozen=True)
class Written:
    """Marks text that matches a pattern as a whole. Unlike pydantic's own, its refusal says `what` in words."""

    pattern: str
    what: str

    def _check(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value):
            raise ValueError(f"should be {self.what}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"pattern": f"^(?:{self.pattern})$"}


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Count = Annotated[Int, Field(ge=1)]
Positive = Annotated[Float, Field(gt=0)]
NotNegative = Annotated[Float, Field(ge=0)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
Port = Annotated[Int, Field(ge=1, le=65535)]
Name = Annotated[
    str,
    Field(max_length=100),
    Written(r"[A-Za-z0-9][A-Za-z0-9._-]*", "letters, digits, '.', '_' and '-' only, a letter or digit first"),
]
Text = Annotated[str, Field(min_length=1)]
PathText = Annotated[Text, AfterValidator(_usable_path)]
ShardSize = Annotated[
    str,
    Written(r"(?=.*[1-9])\d+(\.\d+)?[KMGTkmgt][Bb]", "a number of KB, MB, GB or TB, e.g. 5GB"),
    Field(description="The most that a file of the written weights has, unless a single weight is larger."),
]
"""Is a size as Transformers' `max_shard_size` takes it."""
MAX_SHARD_SIZE = "5GB"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @property
    def given(self) -> set[str]:
        """Returns the keys that are something else than their defaults. Rules ask this, and not `model_fields_set`: a
        config that was written out whole, for a job or in a run folder, sets every key."""
        fields = type(self).model_fields
        defaults = {name: fields[name].get_default(call_default_factory=True) for name in self.model_fields_set}
        return {name for name, default in defaults.items() if getattr(self, name) != default}

    def with_absolute_paths(self) -> Self:
        """Returns this section with every path that is relative to the working folder made absolute, in the sections
        within it too, and in lists and mappings of them. A section whose own values are paths extends this."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        changed = {name: new for name, each in values.items() if (new := _with_absolute_paths(each)) is not each}
        return self.model_copy(update=changed) if changed else self


def _with_absolute_paths(value: Any) -> Any:
    """Returns a section, or a list or mapping of them, with absolute paths; the very value where nothing of it
    changes."""
    if isinstance(value, Section):
        return value.with_absolute_paths()
    if isinstance(value, list):
        changed = [_with_absolute_paths(each) for each in value]
        return value if all(new is each for new, each in zip(changed, value, strict=True)) else changed
    if isinstance(value, dict):
        moved = {key: _with_absolute_paths(each) for key, each in value.items()}
        return value if all(moved[key] is each for key, each in value.items()) else moved
    return value


def absolute_folder(path: str) -> str:
    """Returns the absolute path of a folder that is here; a hub name, `package:` or `builtin:` stays as it is."""
    place = Path(path).expanduser()
    return str(place.absolute()) if place.is_dir() else path


def absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def is_place(named: str) -> bool:
    """Tells whether what may be a name or a path is a path to YAML: it has the suffix or a folder."""
    return "/" in named or named.endswith((".yaml", ".yml"))


def list_or_name(value: Any) -> str:
    """Returns the tag of the type that a value which may be a name or a list is looked at by: its mistakes alone are
    told then."""
    return "[list]" if isinstance(value, list) else "[name]"


def is_template_file(named: str) -> bool:
    """Tells whether a value of `data.chat_template` means a file: it has a suffix or a folder."""
    return not named.startswith("trl:") and ("/" in named or "." in named)
