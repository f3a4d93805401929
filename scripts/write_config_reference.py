"""Write docs/config.md from the config's own schema, so that the page cannot lag behind.

python scripts/write_config_reference.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scaleup.config.stages import json_schema

PAGE = Path(__file__).parent.parent / "docs" / "config.md"

HEAD = """# Config reference

Written by `scripts/write_config_reference.py` from the schema; do not edit. Any key can be set on the command line:
`train.max_steps=10`. `scaleup schema` prints the same as JSON schema for editors.
"""


def page() -> str:
    schema = json_schema()
    definitions = schema["$defs"]
    stages = [entry["$ref"].rsplit("/", 1)[-1] for entry in schema["oneOf"]]
    sections = [*stages, *(name for name in definitions if name not in stages)]
    return HEAD + "".join(_section(name, definitions[name]) for name in sections)


def _section(name: str, definition: dict[str, Any]) -> str:
    required = set(definition.get("required", []))
    rows = [
        f"| `{key}` | {_kind(value)} | {_default(value, key in required)} | {value.get('description', '')} |"
        for key, value in definition["properties"].items()
    ]
    text = (definition.get("description") or "").strip()
    lines = [
        "",
        f"## {name}",
        "",
        *([text, ""] if text else []),
        "| key | type | default | |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _kind(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return " \\| ".join(f"`{choice}`" for choice in value["enum"])
    if choices := value.get("anyOf", value.get("oneOf")):
        return " or ".join(_kind(choice) for choice in choices)
    if "prefixItems" in value:
        return f"[{', '.join(map(_kind, value['prefixItems']))}]"
    if value.get("type") == "array":
        return f"list of {_kind(value['items'])}"
    return {"object": "mapping", "null": "null"}.get(value.get("type", ""), str(value.get("type", "any")))


def _default(value: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    if value.get("default") in (None, ""):
        return ""
    return f"`{json.dumps(value['default'])}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)
