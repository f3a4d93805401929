"""This module checks the Python functions that give rewards as they are read, not run: errors of running one are its
process's to find. Those that come with the package are read as a user's are."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import scaleup
from scaleup.config.mistakes import suggestion
from scaleup.config.reward_source import RewardSource
from scaleup.errors import Problem

BUILTIN = "builtin"
READY = Path(scaleup.__file__).parent / "rl/rewards/ready.py"
GIVEN = ("prompts", "completions", "completion_ids")
FORMS = "write FILE.py:NAME, MODULE:NAME or builtin:NAME"
TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "str | None": (str, type(None)),
}
"""Maps what a built-in function's parameters are annotated with -> what YAML may say."""
Definition = ast.FunctionDef | ast.AsyncFunctionDef


def function_problems(source: RewardSource, key: str) -> Iterator[Problem]:
    """Yields problems of a source's function, and of what it gets beside the rows; `key` is the source's."""
    where, function = f"{key}.function", source.function or ""
    place, _, name = function.rpartition(":")
    if not place or not name.isidentifier():
        yield Problem(where, f"{function!r} names no function", FORMS)
        return
    yield from (
        Problem(f"{key}.arguments.{argument}", "is what the rows give", "choose another name")
        for argument in source.arguments
        if argument in GIVEN
    )
    if place == BUILTIN:
        yield from _builtin_problems(name, source.arguments, key)
    elif place.endswith(".py"):
        yield from _file_problems(Path(place), name, source.arguments, key)
    elif not _is_module(place):
        yield Problem(where, f"there is no module {place}", "install it, or name a FILE.py")


def pattern_problems(pattern: str, where: str) -> Iterator[Problem]:
    """Yields the problem of a text that is no pattern of Python's `re`."""
    try:
        re.compile(pattern)
    except re.error as error:
        yield Problem(where, f"{pattern!r} is no regular expression: {error}", "mend it")


def _is_module(place: str) -> bool:
    try:
        return importlib.util.find_spec(place.partition(".")[0]) is not None
    except (ValueError, ImportError):
        return False


def _builtin_problems(name: str, arguments: dict[str, Any], key: str) -> Iterator[Problem]:
    known = {node.name: node for node in _definitions(ast.parse(READY.read_bytes())) if not node.name.startswith("_")}
    if name not in known:
        remedy = suggestion(name, list(known)) or f"there are {', '.join(known)}"
        yield Problem(f"{key}.function", f"there is no built-in reward {name}", remedy)
        return
    settings = {each.arg: each for each in known[name].args.args}
    needed = list(settings)[: len(settings) - len(known[name].args.defaults)]
    for missing in (each for each in needed if each not in arguments):
        yield Problem(f"{key}.arguments.{missing}", f"is needed by builtin:{name}", "give it")
    yield from _unknown(arguments, list(settings), f"builtin:{name}", key)
    for argument, value in arguments.items():
        where = f"{key}.arguments.{argument}"
        annotation = settings[argument].annotation if argument in settings else None
        if annotation is None:
            continue
        kind = ast.unparse(annotation)
        if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "bool"):
            yield Problem(where, f"{value!r} is no {kind}", "write one")
        elif argument == "pattern":
            yield from pattern_problems(str(value), where)


def _file_problems(file: Path, name: str, arguments: dict[str, Any], key: str) -> Iterator[Problem]:
    where = f"{key}.function"
    tree = yield from definition_problems(file, name, where)
    for node in _definitions(tree) if tree is not None else []:
        if node.name == name and node.args.kwarg is None and not node.decorator_list:
            taken = [each.arg for each in (*node.args.args, *node.args.kwonlyargs)]
            yield from _unknown(arguments, [each for each in taken if each not in GIVEN], name, key)


def definition_problems(file: Path, name: str, where: str) -> Generator[Problem, None, ast.Module | None]:
    """Yields why a file has no such function, to the config key `where`; returns the file as it was parsed, None if it
    has none."""
    if not file.is_file():
        yield Problem(where, f"there is no file {file}", "write FILE.py:NAME, from this folder")
        return None
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (OSError, SyntaxError, ValueError) as error:
        yield Problem(where, f"{file} cannot be read as Python: {error}", "mend it")
        return None
    nodes = list(ast.walk(tree))
    known = [node.name for node in nodes if isinstance(node, Definition | ast.ClassDef)]
    others = {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    others |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    if name not in others.union(known):
        remedy = suggestion(name, known) or (f"it has {', '.join(known)}" if known else "define it")
        yield Problem(where, f"{file} defines no {name}", remedy)
        return None
    return tree


def _definitions(tree: ast.Module) -> list[Definition]:
    return [node for node in tree.body if isinstance(node, Definition)]


def _unknown(arguments: dict[str, Any], known: list[str], name: str, key: str) -> Iterator[Problem]:
    for argument in arguments:
        if argument not in known and argument not in GIVEN:
            remedy = suggestion(argument, known) or (f"it takes {', '.join(known)}" if known else "leave it out")
            yield Problem(f"{key}.arguments.{argument}", f"{name} takes no such argument", remedy)
