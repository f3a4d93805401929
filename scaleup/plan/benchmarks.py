"""This module checks the benchmarks of an evaluation, tasks of lm-evaluation-harness: their names and files are looked
up and read, and no code of the harness or of a task is run."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from scaleup.config.evaluation import EvaluationConfig
from scaleup.config.fields import is_place
from scaleup.config.mistakes import suggestion
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.machine import Machine

KEY = "evaluation.tasks"
HARNESS = "lm_eval"
NAMING = re.compile(rb"""^[-\s]*["']?(?:task|group|tag)["']?\s*:[ \t]*(.*)$|^[ \t]*-[ ]*(.+)$""", re.MULTILINE)
"""Finds the lines of the harness's files that may name a task, a group or a tag. Reading them as YAML would take ten
seconds; what is no name of a task after all is refused when the run begins (evaluation/harness.py)."""
TRUSTED = ("class", "unsafe_code", "hf_evaluate")
"""Are keys of a task by which code runs: a class of its own, what the model wrote, or a metric of a hub."""


def benchmark_problems(evaluation: EvaluationConfig, machine: Machine) -> Iterator[Problem]:
    """Yields tasks that are not there, or would run code that is not trusted."""
    tasks = evaluation.tasks
    if not tasks:
        for key in ("num_fewshot", "apply_chat_template"):
            if getattr(evaluation, key) not in (None, False):
                yield Problem(f"evaluation.{key}", "is of evaluation.tasks, and there are none", "leave it out")
        return
    if repeated := [task for task in tasks if tasks.count(task) > 1]:
        yield Problem(KEY, f"names {repeated[0]} twice", "leave it out")
    for task in dict.fromkeys(tasks):
        if is_place(task):
            yield from _file_problems(task, evaluation.trust_remote_code)
        elif not machine.is_described and (known := harness_names()) and task not in known:
            remedy = suggestion(task, sorted(known)) or f"name one that {HARNESS} ls tasks lists, or a FILE.yaml"
            yield Problem(KEY, f"{HARNESS} knows no task, group or tag {task!r}", remedy)


def task_files(place: str) -> list[Path]:
    """Returns the files of the tasks at a path: itself, or those of a folder that name a task, in order. Raises
    ScaleupError for a file that is no YAML."""
    path = Path(place).expanduser()
    if not path.is_dir():
        return [path]
    return [file for file in sorted(path.glob("*.yaml")) if isinstance(_content(file).get("task"), str)]


@cache
def harness_names() -> frozenset[str]:
    """Returns whatever may be a name in the installed harness; nothing where it is not installed."""
    found = importlib.util.find_spec(HARNESS)
    if found is None or not found.submodule_search_locations:
        return frozenset()
    files = (file for file in Path(found.submodule_search_locations[0], "tasks").rglob("*") if _may_name(file))
    lines = (match[1] or match[2] or b"" for file in files for match in NAMING.finditer(file.read_bytes()))
    return frozenset(
        name.decode(errors="replace") for line in lines for name in re.findall(rb"""[^\s"'\[\],]+""", line)
    )


def _may_name(file: Path) -> bool:
    """Returns whether a file of the harness is YAML, which those that others include have no suffix to tell."""
    return "yaml" in file.name or (file.suffix in ("", ".yml") and file.is_file())


def _file_problems(place: str, trust: bool) -> Iterator[Problem]:
    """Yields what is wrong with the tasks at a path."""
    path = Path(place).expanduser()
    if not path.exists():
        yield Problem(KEY, f"there is no file or folder {place}", "name a FILE.yaml, or a folder of those")
        return
    try:
        files = task_files(place)
        if not files:
            yield Problem(KEY, f"{place} holds no task", "name a folder with files NAME.yaml that have a key task")
        for file in files:
            content = _content(file)
            if not {"task", "group"} & content.keys():
                yield Problem(KEY, f"{file} is no task: it has neither task nor group", "name one that has")
                continue
            # A group names tasks beside it.
            beside = sorted(file.parent.rglob("*.yaml")) if "group" in content else [file]
            parts = dict.fromkeys(part for each in beside for part in _with_included(each))
            if not trust and (code := [each for part in parts for each in _code(part)]):
                what = f"{file} would run code: {', '.join(dict.fromkeys(code))}"
                yield Problem(KEY, what, "read it, and say evaluation.trust_remote_code: true")
    except ScaleupError as error:
        yield from error.problems


def _root(file: Path) -> yaml.Node | None:
    """Returns a file's YAML as it is written: no value is made of it. Raises ScaleupError where it is none."""
    try:
        return yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        what = f"{file} cannot be read: {' '.join(str(error).split())}"
        raise ScaleupError.of(KEY, what, "mend it") from None


def _content(file: Path) -> dict[str, str | list[str]]:
    """Returns the keys of a task's file whose values are texts or lists of them, as they are written."""
    root = _root(file)
    if not isinstance(root, yaml.MappingNode):
        raise ScaleupError.of(KEY, f"{file} is no task: it holds no keys", "write task: NAME and what it reads")
    values: dict[str, str | list[str]] = {}
    for key, value in root.value:
        nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
        texts = [node.value for node in nodes if isinstance(node, yaml.ScalarNode)]
        values[str(key.value)] = texts[0] if isinstance(value, yaml.ScalarNode) else texts
    return values


def _with_included(file: Path, seen: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yields a task's file and those that it includes, which the harness looks for from where it is."""
    if file in seen:
        raise ScaleupError.of(KEY, f"{file} includes itself", "leave it out")
    yield file
    included = _content(file).get("include", [])
    for name in [included] if isinstance(included, str) else included:
        yield from _with_included(file.parent / name, (*seen, file))


def _code(file: Path) -> list[str]:
    """Returns what a task's file says that runs code, as it is written."""
    found: list[str] = []

    def look(node: yaml.Node | None) -> None:
        if node is None or node.tag.startswith("!"):
            found.extend([f"{node.tag} {node.value}"] if node else [])
        elif isinstance(node, yaml.SequenceNode):
            for each in node.value:
                look(each)
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                is_code = key.value in TRUSTED and value.value not in ("false", "null", "")
                found.extend([str(key.value)] if is_code else [])
                look(value)

    look(_root(file))
    return found
