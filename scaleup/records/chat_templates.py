"""What `data.chat_template` names goes in, and the template's text comes out."""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from pathlib import Path

from scaleup.config.fields import is_template_file
from scaleup.errors import ScaleupError

TRL = "trl:"
KEY = "data.chat_template"


def read_template(named: str) -> str:
    """Returns the text of a file, or of a template that TRL ships (`trl:NAME`).

    Raises ScaleupError at data.chat_template."""
    if named.startswith(TRL):
        return _trl_template(named.removeprefix(TRL))
    if not is_template_file(named):
        what = f"the tokenizer has no template named {named!r}"
        raise ScaleupError.of(KEY, what, "name one that it has, a file (NAME.jinja), or one of TRL's (trl:NAME)")
    try:
        return Path(named).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ScaleupError.of(KEY, f"{named} cannot be read: {reason}", "name a file with a Jinja template") from None


def has_trl() -> bool:
    """Returns whether TRL, with its templates, is installed."""
    return _trl_folder() is not None


def _trl_folder() -> Path | None:
    spec = find_spec("trl")  # finds the package without importing it
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) / "chat_templates" if places else None


def _trl_template(name: str) -> str:
    folder = _trl_folder()
    if folder is None:
        raise ScaleupError.of(
            KEY, "TRL's templates come with TRL, which is not installed", "pip install 'scaleup[train]'"
        )
    names = sorted(file.stem for file in folder.glob("*.jinja"))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        remedy = f"did you mean '{TRL}{near[0]}'?" if near else f"it has {', '.join(names)}"
        raise ScaleupError.of(KEY, f"TRL has no template {name!r}", remedy)
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")
