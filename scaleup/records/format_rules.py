"""This module tells the row format of a source, and the mistakes a config can make in stating it. Where it states none,
the columns of the data may tell (`recognition`)."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable, Iterator, Sequence

from scaleup.config.data import DataConfig, RowFormat, SourceConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.records.alpaca import ALPACA, FIELDS
from scaleup.records.instructions import INSTRUCTIONS
from scaleup.records.recognition import columns_of, fitting, recognised
from scaleup.records.template import Template

TEMPLATE_KEYS = ("prompt", "completion", "text", "chosen", "rejected")
PREFERENCE_KEYS = ("chosen", "rejected", "completions", "ranks", "ratings", "margin")
FORMAT_KEYS = ("prompt", "completion", "template", "messages", "text", "label", *PREFERENCE_KEYS)
SPLITS = ("train", "validation", "test", "supervised", "retain", "regularization")
NUM_COLUMNS_SHOWN = 10


TEMPLATES = {name: instruction.columns for name, instruction in INSTRUCTIONS.items()} | {ALPACA: FIELDS}
"""Maps the named templates to the columns that they read."""


def row_format(data: DataConfig, source: SourceConfig) -> RowFormat:
    """Returns the source's own format if it states one, else that of the data, else what its columns tell; the
    source's `columns` override the data's."""
    own: RowFormat = source if states_format(source) else data
    tools = source.tools or own.tools
    if not states_format(own) and (found := recognised(data, source)):
        own = found.form
    stated = {key: getattr(own, key) for key in FORMAT_KEYS}
    return RowFormat(**stated, tools=tools, columns={**data.columns, **source.columns})


def with_formats(data: DataConfig) -> DataConfig:
    """Returns a data section in which every source whose columns tell its format states it: another stage, or none, may
    read other columns of the same file."""
    splits = {split: getattr(data, split) for split in SPLITS}
    return data.model_copy(
        update={split: [_with_format(data, each) for each in sources] for split, sources in splits.items() if sources}
    )


def _with_format(data: DataConfig, source: SourceConfig) -> SourceConfig:
    if states_format(source) or states_format(data) or not (found := recognised(data, source)):
        return source
    form = {key: getattr(found.form, key) for key in FORMAT_KEYS}
    return source.model_copy(update={**form, "tools": source.tools or data.tools})


def states_format(section: RowFormat) -> bool:
    """Returns whether the section sets any of the keys that say how a row becomes an example."""
    return any(getattr(section, key) is not None for key in FORMAT_KEYS)


def recognitions(data: DataConfig, splits: Iterable[str]) -> Iterator[str]:
    """Yields how the rows of each source are read whose format nothing states: `data.train.0: rows are read as ...`."""
    for split in splits:
        for place, source in enumerate(getattr(data, split) or []):
            if not states_format(source) and not states_format(data) and (found := recognised(data, source)):
                yield f"data.{split}.{place}: rows are {found}"


def told_by_columns(data: DataConfig, splits: Iterable[str]) -> str:
    """Returns what to say after the name of a key that no config states: how the first such source is read."""
    return next((f" ({note})" for note in recognitions(data, splits)), "")


def format_problems(data: DataConfig, splits: Sequence[str], prompts_only: Container[str] = ()) -> list[Problem]:
    """Returns the mistakes in the row formats of the splits' sources, each once. In the splits of `prompts_only` (for
    generation) a prompt needs no completion, and plain text, which has no prompt, is refused."""
    problems: list[Problem] = []
    unknown: list[Problem] = []
    for split in splits:
        for place, source in enumerate(getattr(data, split) or []):
            key = f"data.{split}.{place}"
            form = row_format(data, source)
            if states_format(form):
                stated = key if states_format(source) else "data"
                problems += format_mistakes(form, stated, split in prompts_only, data.is_judged)
            else:
                unknown.append(_no_format("data", key, columns_of(data, source), fitting(data, source)))
            problems += _unknown_fields(source.columns, _fields(form), f"{key}.columns")
    if any(getattr(data, split) for split in splits):
        problems += _unknown_fields(data.columns, _all_fields(data), "data.columns")
    return list(dict.fromkeys(unknown[:1] + problems))


def format_mistakes(form: RowFormat, where: str, prompts_only: bool = False, is_judged: bool = False) -> list[Problem]:
    """Returns the mistakes in one row format, `columns` aside; `where` is the config key of the section that states
    it. `is_judged`: rows may leave open which of several completions is the better."""
    problems = _incompatible_keys(form, where, prompts_only, is_judged) or _misplaced_tools(form, where)
    if form.template is not None and form.template not in TEMPLATES:
        remedy = _nearest(form.template, TEMPLATES)
        problems.append(Problem(f"{where}.template", f"'{form.template}' is no template", remedy))
    for key in TEMPLATE_KEYS:
        if (text := getattr(form, key)) is not None:
            problems += _template_mistakes(text, f"{where}.{key}", may_be_constant=key == "prompt")
    return problems


def _template_mistakes(text: str, where: str, may_be_constant: bool) -> list[Problem]:
    try:
        template = Template(text)
    except ScaleupError as error:
        return [Problem(where, f"{item.where} {item.what}", item.remedy) for item in error.problems]
    if template.fields or may_be_constant:
        return []
    return [Problem(where, f"{text!r} names no column: all rows would read the same", "write {column} for its value")]


def holds_preferences(form: RowFormat) -> bool:
    """Returns whether rows of a format are pairs or rankings of responses."""
    return any(getattr(form, key) is not None for key in PREFERENCE_KEYS)


def chat_key(form: RowFormat) -> str | None:
    """Returns the key that makes conversations of all rows, whatever they hold, if there is one."""
    return "messages" if form.messages is not None else "template" if form.template == ALPACA else None


def holds_class(form: RowFormat) -> bool:
    """Returns whether rows of a format are texts with a class."""
    return form.label is not None and form.completion is None


def is_unpaired(form: RowFormat) -> bool:
    """Returns whether rows of a format are prompts with a response that is desirable or not."""
    return form.label is not None and form.completion is not None


def holds_pairs(data: DataConfig, split: str) -> bool:
    """Returns whether any of a split's rows are pairs or rankings of responses."""
    return any(holds_preferences(row_format(data, source)) for source in getattr(data, split) or [])


def holds_labels(data: DataConfig, split: str) -> bool:
    """Returns whether any of a split's rows are texts with a class."""
    return any(holds_class(row_format(data, source)) for source in getattr(data, split) or [])


def _preference_mistakes(form: RowFormat, where: str, prompts_only: bool, is_judged: bool) -> list[Problem]:
    stated = [key for key in FORMAT_KEYS if getattr(form, key) is not None]
    is_pair = form.chosen is not None or form.rejected is not None
    allowed = {"prompt", "chosen", "rejected", "margin"} if is_pair else {"prompt", *PREFERENCE_KEYS}
    if strangers := [key for key in stated if key not in allowed]:
        what = f"is set beside {', '.join(key for key in stated if key in allowed)}: a row has one format"
        return [Problem(f"{where}.{key}", what, "keep one of them") for key in strangers[:1]]
    problems = []
    if prompts_only and form.prompt is None:
        problems.append(Problem(where, "gives no prompts to generate from", f"set {where}.prompt"))
    needed = ("chosen", "rejected") if is_pair else ("completions",)
    for key in (key for key in needed if getattr(form, key) is None):
        beside = next(name for name in PREFERENCE_KEYS if getattr(form, name) is not None)
        problems.append(Problem(f"{where}.{beside}", f"is set without {key}", f"set {where}.{key} beside it"))
    is_open = is_judged and form.ranks is None and form.ratings is None
    if form.completions is not None and not is_open and (form.ranks is None) == (form.ratings is None):
        what = "says nothing of which is better" if form.ranks is None else "has both ranks and ratings"
        problems.append(Problem(f"{where}.completions", what, f"set {where}.ranks or {where}.ratings"))
    if not is_pair and form.margin is not None and form.margin != form.ratings:
        what = "of a ranking can only be the difference of two ratings"
        problems.append(Problem(f"{where}.margin", what, "name the column of ratings, or leave it out"))
    return problems


def _incompatible_keys(form: RowFormat, where: str, prompts_only: bool, is_judged: bool) -> list[Problem]:
    if holds_preferences(form):
        return _preference_mistakes(form, where, prompts_only, is_judged)
    first_keys = {"prompt or completion": form.prompt or form.completion}
    first_keys |= {key: getattr(form, key) for key in ("template", "messages", "text")}
    stated = [name for name, value in first_keys.items() if value is not None]
    if not stated and form.label is None:
        return [_no_format(where)]
    if len(stated) > 1:
        names = [key for key in FORMAT_KEYS if getattr(form, key) is not None]
        what = f"is set beside {', '.join(names[:-1])}: a row has one format"
        return [Problem(f"{where}.{names[-1]}", what, "keep one of them")]
    if form.completion is not None and form.prompt is None:
        return [Problem(f"{where}.completion", "is set without a prompt", f"set {where}.prompt beside it")]
    if form.prompt is not None and form.completion is None and not prompts_only:
        return [Problem(f"{where}.prompt", "is set without a completion", f"set {where}.completion beside it")]
    if form.label is not None and form.text is None and form.completion is None and not prompts_only:
        remedy = f"set {where}.text beside it, or {where}.prompt and {where}.completion"
        return [Problem(f"{where}.label", "is set without a text", remedy)]
    if form.text is not None and prompts_only:
        return [Problem(f"{where}.text", "gives no prompts to generate from", f"set {where}.prompt instead")]
    return []


def _no_format(where: str, source: str = "", columns: Sequence[str] = (), formats: Sequence[str] = ()) -> Problem:
    remedy = "set prompt and completion, or template, messages or text; for a reward model chosen and rejected"
    shown = ", ".join(columns[:NUM_COLUMNS_SHOWN]) + (", ..." if len(columns) > NUM_COLUMNS_SHOWN else "")
    several = f": they fit {' and '.join(formats)}" if formats else ""
    found = f" ({source} has the columns {shown}{several})" if columns else ""
    return Problem(where, f"nothing says how a row becomes an example{found}", remedy)


def _misplaced_tools(form: RowFormat, where: str) -> list[Problem]:
    """Returns a refusal of tools beside rows that are never conversations."""
    beside = next((key for key in ("text", "template") if getattr(form, key) is not None), None)
    if form.tools is None or beside is None or chat_key(form):
        return []
    what = f"is set beside {beside}, whose rows are no conversations"
    return [Problem(f"{where}.tools", what, "leave it out")]


def _fields(form: RowFormat) -> set[str] | None:
    """Returns the names that `columns` may map; None when a mistake in the format leaves them unknown."""
    if form.template is not None and form.template not in TEMPLATES:
        return None
    fields = set(TEMPLATES[form.template]) if form.template is not None else set()
    try:
        return fields.union(*(Template(getattr(form, key) or "").fields for key in TEMPLATE_KEYS))
    except ScaleupError:
        return None


def _all_fields(data: DataConfig) -> set[str] | None:
    """Returns the fields of all sources: what `data.columns` maps may be for one of them only. None if any are
    unknown."""
    sources = [source for split in SPLITS for source in getattr(data, split) or []]
    known = [_fields(form) for form in (data, *(row_format(data, source) for source in sources))]
    return None if None in known else set().union(*(fields for fields in known if fields))


def _unknown_fields(columns: Iterable[str], fields: set[str] | None, where: str) -> list[Problem]:
    if fields is None:
        return []
    return [
        Problem(f"{where}.{name}", f"the row format has no field '{name}'", _nearest(name, sorted(fields)))
        for name in columns
        if name not in fields
    ]


def _nearest(name: str, valid: Iterable[str]) -> str:
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"it has {', '.join(valid)}" if valid else "remove it"
