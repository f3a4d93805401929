"""This package is the registry of stages: each is one module here, with its settings and its config class, found by its
name."""

from __future__ import annotations

from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter

from scaleup.config.run import RunConfig

NAMES = (
    "sft",
    "reward",
    "classify",
    "dpo",
    "ppo",
    "rl",
    "distill",
    "prune",
    "quantize",
    "export",
    "card",
    "evaluate",
    "generate",
    "revise",
    "judge",
)
"""Lists the stages, in the order in which documents do. A new stage adds its name here."""


def _config_class(name: str) -> type[RunConfig]:
    """Returns the one class of the stage's module whose `stage` is its name."""
    classes = vars(import_module(f"scaleup.config.stages.{name}")).values()
    configs = (each for each in classes if isinstance(each, type) and issubclass(each, RunConfig))
    return next(each for each in configs if name in get_args(each.model_fields["stage"].annotation))


STAGES: dict[str, type[RunConfig]] = {name: _config_class(name) for name in NAMES}


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema of a config file, for editors."""
    any_config: Any = Annotated[reduce(or_, STAGES.values()), Field(discriminator="stage")]
    schema = TypeAdapter[Any](any_config).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "scaleup run config", **schema}
