"""Write docs/api.md from what `scaleup.rl` exports, so that the page cannot lag behind.

python scripts/write_api_reference.py
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import scaleup.rl
from scaleup.config.fields import Section

PAGE = Path(__file__).parent.parent / "docs" / "api.md"

HEAD = """# Python API

Written by `scripts/write_api_reference.py` from the code; do not edit. What `from scaleup.rl import ...` gives:
trainers without config or launcher, and the functions they are made of. [examples/grpo.py](../examples/grpo.py)
and [examples/ppo.py](../examples/ppo.py) are whole programs; equations stand in [algorithms](algorithms.md). All else
is a command: `scaleup --help`.
"""


def page() -> str:
    exported = {name: getattr(scaleup.rl, name) for name in sorted(scaleup.rl.__all__)}
    classes = {name: each for name, each in exported.items() if inspect.isclass(each)}
    settings = {name: each for name, each in classes.items() if issubclass(each, Section)}
    others = {name: each for name, each in classes.items() if name not in settings}
    functions = {name: each for name, each in exported.items() if name not in classes}
    keys = (Path(__file__).parent.parent / "docs/config.md").read_text(encoding="utf-8")
    parts = [HEAD, "\n## Trainers and what they take\n", *(_class(*pair) for pair in others.items())]
    parts += ["\n## Settings\n\nTheir fields are keys of the config.\n\n"]
    parts += [_settings(name, each, f"\n## {name}\n" in keys) for name, each in settings.items()]
    parts += ["\n## Functions\n", *(_function(*pair) for pair in functions.items())]
    return "".join(parts)


def _class(name: str, each: type) -> str:
    parts = vars(each)
    text = f"\n### {name}\n\n{_documented(each)}\n"
    if "__init__" in parts and not getattr(each, "_is_protocol", False):
        text += f"\n```python\n{name}{_signature(parts['__init__'])}\n```\n"
    methods = [key for key, part in parts.items() if inspect.isfunction(part) and key[0] != "_" and part.__doc__]
    lines = [f"- `{key}{_signature(parts[key], is_short=True)}`: {_documented(parts[key], 1)}\n" for key in methods]
    return text + ("\n" + "".join(lines) if lines else "")


def _settings(name: str, each: type, is_in_config: bool) -> str:
    shown = f"[{name}](config.md#{name.lower()})" if is_in_config else f"`{name}`"
    return f"- {shown}: {_documented(each)}\n"


def _function(name: str, each: Any) -> str:
    return f"\n### {name}\n\n```python\n{name}{_signature(each)}\n```\n\n{_documented(each)}\n"


def _signature(function: Any, is_short: bool = False) -> str:
    """Returns parameters and result, a parameter a line where one line is too long."""
    found = inspect.signature(function)
    shown: list[str] = []
    for each in found.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        star = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        default = each.default
        value = "" if default is each.empty else " = ..." if repr(default).startswith("<") else f" = {default!r}"
        shown.append(f"{star}{each.name}: {each.annotation}{value}")
    after = "" if function.__name__ == "__init__" else f" -> {found.return_annotation}"
    line = f"({', '.join(shown)}){after}"
    if len(line) > 90 and not is_short:
        line = "(\n    " + ",\n    ".join(shown) + f",\n){after}"
    return line.replace("torch.Tensor", "Tensor")


def _documented(each: Any, paragraphs: int | None = None) -> str:
    """Returns a docstring's paragraphs, without line breaks inside of them."""
    parts = (inspect.getdoc(each) or "").split("\n\n")[:paragraphs]
    return "\n\n".join(" ".join(part.split()) for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)
