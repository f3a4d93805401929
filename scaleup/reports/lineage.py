"""A run folder goes in; what it was made from, and what that was made from, comes out: as text, JSON, a picture, and a
section of a model card."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from scaleup.artifacts.lineage import Lineage, manifest_hash
from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError
from scaleup.plan.lineage import parents_of
from scaleup.plan.stages import planner_of
from scaleup.reports.plots import figure

FORMATS = (".png", ".svg")
SHORT = 12
"""Counts the digits of a hash that are shown."""


@dataclass(frozen=True)
class Ancestor:
    """Stands for a run with those whose models and rows it was made from."""

    run: str
    stage: str = ""
    finished_at: str | None = None
    """Is None of a run that has not finished, or is gone."""
    lineage: Lineage | None = None
    """Is None of a run of an earlier version."""
    bases: tuple[tuple[str, str], ...] = ()
    """Holds config key and path of each model that is in no run's folder."""
    stale: tuple[str, ...] = ()
    """Says which of its inputs are others by now: it would come out otherwise if it were made again."""
    parents: tuple[tuple[str, Ancestor], ...] = ()
    """Holds the config key by which the run names each parent, and the parent."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "stage": self.stage,
            "finished_at": self.finished_at,
            "stale": list(self.stale),
            "lineage": self.lineage and self.lineage.model_dump(mode="json"),
            "models": dict(self.bases),
            "parents": {key: parent.as_dict() for key, parent in self.parents},
        }


def ancestry(run: RunFolder, below: tuple[str, ...] = ()) -> Ancestor:
    """Returns a run with all that it was made from; `below` are the runs that it is looked at for. Raises ScaleupError
    if its config or its manifest cannot be read."""
    if not run.config_file.is_file():
        return Ancestor(str(run.path), stale=("is gone",))
    config, lineage = run.config, run.lineage()
    try:
        manifest = run.manifest()
    except (OSError, ValueError) as error:
        what = f"is no manifest that can be read ({type(error).__name__})"
        raise ScaleupError.of(str(run.manifest_file), what, "name a run folder that scaleup wrote") from error
    named = parents_of(config) if lineage is None else lineage.parents
    parents = {
        key: ancestry(RunFolder(Path(each.run)), (*below, str(run.path)))
        for key, each in named.items()
        if each.run not in (*below, str(run.path))
    }
    stale = [
        f"{key}: {each.run} {'was made again' if manifest_hash(Path(each.run)) else 'is gone or not finished'}"
        for key, each in named.items()
        if each.is_stale
    ]
    stale += [f"{key}: {each.run} is stale" for key, each in parents.items() if each.stale and not named[key].is_stale]
    models = planner_of(config).models(config)
    return Ancestor(
        run=str(run.path),
        stage=config.stage,
        finished_at=manifest.finished_at if manifest else None,
        lineage=lineage,
        bases=tuple((key, model.path) for key, model in models.items() if not {key, f"{key}.path"} & set(named)),
        stale=tuple(stale),
        parents=tuple(parents.items()),
    )


def show_lineage(run: RunFolder, console: Console, as_json: bool = False, output: Path | None = None) -> None:
    """Prints what a run was made from, as a tree or as JSON, and draws it into a PNG or SVG file.

    Raises ScaleupError for what is no run folder, and for a file that cannot be written."""
    if not run.config_file.is_file():
        raise ScaleupError.of(str(run.path), "is no run folder", "name the folder of a run, e.g. runs/reviews")
    if output is not None:
        _check_output(output)
    root = ancestry(run)
    if as_json:
        print(json.dumps(root.as_dict(), indent=2))
    else:
        console.print("\n".join([_title(root), *_branches(root)]), soft_wrap=True)
    if output is not None:
        try:
            draw(root, output)
        except OSError as error:
            raise ScaleupError.of(str(output), f"cannot be written: {error.strerror or error}", "") from error


def _check_output(output: Path) -> None:
    if output.suffix not in FORMATS:
        raise ScaleupError.of("-o", f"{output} is neither a PNG nor an SVG file", "name it FILE.png or FILE.svg")
    if not output.absolute().parent.is_dir():
        raise ScaleupError.of("-o", f"there is no folder {output.absolute().parent}", "make it, or name another")
    if importlib.util.find_spec("matplotlib") is None:
        raise ScaleupError.of("-o", "a picture needs matplotlib, not installed here", "pip install 'scaleup[train]'")


def _title(node: Ancestor) -> str:
    when = f"finished {node.finished_at}" if node.finished_at else "not finished"
    return f"{node.run}: {node.stage}, {when}" if node.stage else node.run


def _branches(node: Ancestor) -> Iterator[str]:
    """Yields the lines below a run's own: rich's trees cut them at the width of the terminal."""
    children: list[tuple[str, Ancestor | None]] = [(f"stale: {line}", None) for line in node.stale]
    children += [(f"{key}: {_title(parent)}", parent) for key, parent in node.parents]
    children += [(line, None) for line in _leaves(node)]
    for place, (line, below) in enumerate(children, 1):
        mark, margin = ("└── ", "    ") if place == len(children) else ("├── ", "│   ")
        yield mark + line
        yield from (margin + each for each in (_branches(below) if below else ()))


def _leaves(node: Ancestor) -> Iterator[str]:
    """Yields a line for each thing that is no run."""
    yield from (f"{key}: {path}" for key, path in node.bases)
    if node.lineage is not None:
        yield from lineage_lines(node.lineage)
    elif node.stage:
        yield "data, code and machine: not recorded (by an earlier version)"


def lineage_lines(lineage: Lineage) -> Iterator[str]:
    """Yields what a run was made from besides models, a line each."""
    for key, rows in lineage.data.items():
        count = "" if rows.num_rows is None else f", {rows.num_rows:,} rows"
        yield f"{key}: {rows.path}{count}, {(rows.hash or 'unknown')[:SHORT]}"
    yield f"config: {lineage.config[:SHORT]}"
    commit, dash, dirty = (lineage.code.commit or "").partition("-")
    commit = f", commit {commit[:SHORT]}{dash}{dirty}" if commit else ""
    packages = ", ".join(f"{name} {version}" for name, version in lineage.packages.items())
    yield f"code: scaleup {lineage.code.version}{commit}; {packages}"
    gpus = f", {', '.join(lineage.machine.gpus)}" if lineage.machine.gpus else ""
    yield f"machine: {lineage.machine.name}, {lineage.machine.num_cores} cores{gpus}"


def with_lineage(card: str, run: RunFolder) -> str:
    """Returns a model card with a section on what the model was made from, where that was recorded."""
    lineage = run.lineage()
    if lineage is None:
        return card
    parents = [f"{key}: `{each.run}` (manifest {each.manifest[:SHORT]})" for key, each in lineage.parents.items()]
    lines = "\n".join(f"- {line}" for line in [*parents, *lineage_lines(lineage)])
    return f"{card.rstrip()}\n\n## Lineage\n\n{lines}\n"


def draw(root: Ancestor, file: Path) -> None:
    """Draws the runs that a run was made from into a PNG or SVG file, from left to right; stale ones in red."""
    columns = lineage_columns(root)
    rows = max(map(len, columns))
    places: dict[str, tuple[float, float]] = {}
    with figure(file, figsize=(2 + 2.6 * len(columns), 1 + 0.9 * rows)) as (_, axes):
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, rows - 0.5))
        axes.axis("off")
        for column, names in enumerate(columns):
            for row, (name, node) in enumerate(names.items()):
                places[name] = column, (row + 0.5) * rows / len(names) - 0.5
                label, color = _label(name, node)
                box = {"boxstyle": "round,pad=0.5", "facecolor": color, "edgecolor": "0.3"}
                axes.text(*places[name], label, ha="center", va="center", fontsize=8, bbox=box)
        for child, key, parent in dict.fromkeys(lineage_arrows(root)):
            line = {"arrowstyle": "->", "color": "0.4", "shrinkA": 38, "shrinkB": 38}
            axes.annotate("", places[child], places[parent], arrowprops=line)
            middle = [(one + other) / 2 for one, other in zip(places[child], places[parent], strict=True)]
            axes.text(*middle, key, ha="center", va="bottom", fontsize=6, color="0.3")


def _label(name: str, node: Ancestor | None) -> tuple[str, str]:
    """Returns what stands in the box of a run or of a base model, and its color."""
    if node is None:
        return (name if len(name) < 30 else f"…{name[-29:]}"), "#e8e8e8"
    return f"{Path(node.run).name}\n{node.stage or 'gone'}", "#f4c7c3" if node.stale else "#d7e8d4"


def lineage_columns(root: Ancestor) -> list[dict[str, Ancestor | None]]:
    """Returns each run, and each base model (None), by its place, those of one column apart from what they are made
    into: the run itself is in the last one."""
    depths: dict[str, int] = {}
    nodes: dict[str, Ancestor | None] = {}

    def visit(node: Ancestor, depth: int) -> None:
        depths[node.run] = max(depth, depths.get(node.run, 0))
        nodes[node.run] = node
        for _, path in node.bases:
            depths[path] = max(depth + 1, depths.get(path, 0))
            nodes[path] = None
        for _, parent in node.parents:
            visit(parent, depth + 1)

    visit(root, 0)
    deepest = max(depths.values())
    columns: list[dict[str, Ancestor | None]] = [{} for _ in range(deepest + 1)]
    for name, depth in depths.items():
        columns[deepest - depth][name] = nodes[name]
    return columns


def lineage_arrows(node: Ancestor) -> Iterator[tuple[str, str, str]]:
    """Yields each run, the config key by which it names a model or another run, and that."""
    yield from ((node.run, key, path) for key, path in node.bases)
    for key, parent in node.parents:
        yield node.run, key.removesuffix(".path"), parent.run
        yield from lineage_arrows(parent)
