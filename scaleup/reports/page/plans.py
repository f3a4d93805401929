"""What was planned and what a run was made from go in; sections of a page come out: plan beside what happened, lineage,
config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from scaleup.artifacts.manifest import Manifest
from scaleup.artifacts.run_folder import RunFolder
from scaleup.errors import ScaleupError, without_passwords
from scaleup.plan.types import Plan
from scaleup.reports.html import Html, Limits, details, facts, join, shortened, table, tag
from scaleup.reports.lineage import Ancestor, ancestry, lineage_arrows, lineage_columns, lineage_lines
from scaleup.reports.page.graph import Arrow, Node, graph
from scaleup.reports.terminal import is_traced, memory_table, plan_facts, planned_memory, size_text, span_text
from scaleup.reports.training import Series

LETTERS_OF_CONFIG = 100
"""Is how many times as many letters as a sample a config may have."""


def planned_mib(plan: Plan | None) -> float | None:
    """Returns the memory in MiB that was planned for the first process; None where it is not known."""
    size = None if plan is None else planned_memory(plan)
    return None if size is None else size / 2**20


def measured_mib(series: Series) -> float | None:
    """Returns the most memory in MiB that the first process had; None where it was not measured."""
    return max((value for _, value in series.get("memory_mib", ())), default=None)


def plan_beside_run(
    plan: Plan, manifest: Manifest | None, series: Series, done: int | None, seconds: float | None
) -> Html:
    """Returns what was planned beside what happened. `done` counts steps (or rollouts); `seconds` are those in which
    they were done."""
    rows = [[name, planned or "–", was or "–"] for name, planned, was in _pairs(plan, manifest, series, done, seconds)]
    is_cpu = plan.groups[0].device == "cpu"
    whole = "On a CPU what is measured is the whole process, with Python and its libraries; planned is what the model"
    told = f"{whole}, its gradients, its optimizer and its activations take." if is_cpu else None
    return join(
        table(["", "planned", "happened"], rows, "Plan and run"),
        tag("p", told, class_="note") if told and planned_mib(plan) and measured_mib(series) else None,
    )


def _pairs(
    plan: Plan, manifest: Manifest | None, series: Series, done: int | None, seconds: float | None
) -> Iterator[tuple[str, str, str]]:
    """Yields what was planned and what happened, where one of them is known."""
    steps = plan.rollouts.num_rollouts if plan.rollouts else plan.batch.num_steps if plan.batch else None
    if steps is not None or done is not None:
        name = "rollouts" if plan.rollouts else "steps"
        yield name, "" if steps is None else f"{steps:,}", "" if done is None else f"{done:,}"
    planned, measured = planned_memory(plan), measured_mib(series)
    if planned is not None or measured is not None:
        was = "" if measured is None else f"{size_text(round(measured * 2**20))}"
        room = "" if is_traced(plan) else ", activations aside"
        yield "memory of the first process", "" if planned is None else f"{size_text(planned)}{room}", was
    tokens = manifest.metrics.get("num_tokens") if manifest else None
    compute = plan.compute
    if tokens is not None or (compute and compute.tokens):
        at_most = f"at most {compute.tokens:,}" if compute and compute.tokens else ""
        yield "tokens", at_most, "" if tokens is None else f"{tokens:,}"
    if seconds is not None:
        hours = f"at most {span_text(compute.hours * 3600)}" if compute and compute.hours is not None else ""
        yield "time of training", hours, span_text(seconds)
    if manifest is not None and (left := manifest.metrics.get("rows_left_out")) is not None:
        rows = plan.batch.num_train_rows if plan.batch else None
        yield "rows that are not learned", "" if rows is None else f"0 of {rows:,}", f"{left:,}"


def whole_plan(plan: Plan, id_: str) -> Html:
    """Returns all that a plan says, to be opened with a click."""
    header, rows = memory_table(plan)
    memory = table(header, rows, "Planned memory of a rank, by strategy") if rows else None
    return details("The whole plan", _named(plan), memory, id_=f"{id_}-plan")


def _named(plan: Plan) -> Html:
    return facts(plan_facts(plan), "Plan")


def lineage(run: RunFolder) -> Html:
    """Returns a picture of what a run was made from, and that in words; nothing where it cannot be read."""
    try:
        root = ancestry(run)
    except (ScaleupError, OSError, ValueError):
        return Html()
    columns = [
        {name: _node(name, node, root) for name, node in column.items()} for column in lineage_columns(root)
    ]  # fmt: skip
    arrows = [Arrow(parent, child, key.removesuffix(".path")) for child, key, parent in lineage_arrows(root)]
    lines = list(lineage_lines(root.lineage)) if root.lineage else ["data, code and machine: not recorded"]
    return join(
        graph(columns, arrows, "Lineage") if arrows else None,
        (tag("p", f"Stale: {line}", class_="problem") for line in root.stale),
        facts(((name, told) for name, _, told in (line.partition(": ") for line in lines)), "Made from"),
    )


def _node(name: str, node: Ancestor | None, root: Ancestor) -> Node:
    if node is None:
        return Node(without_passwords(name), "model")
    return Node(Path(node.run).name, node.stage or "gone", "bad" if node.stale else "own" if node is root else "")


def config(run: RunFolder, limits: Limits, id_: str, is_open: bool = True) -> Html:
    """Returns a config as it was given, unless `is_open` to be opened with a click, and whole; without secrets."""
    try:
        given, whole = (_yaml(run.config.shown(exclude_defaults=is_given)) for is_given in (True, False))
    except ScaleupError as error:
        return tag("p", str(error), class_="problem")
    letters = limits.letters * LETTERS_OF_CONFIG
    shown, all_ = (tag("pre", shortened(text, letters), tabindex="0", role="group") for text in (given, whole))
    return join(
        shown if is_open else details("As it was given", shown, id_=f"{id_}-given"),
        details("With all defaults", all_, id_=f"{id_}-config"),
    )


def _yaml(value: object) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)).strip()
