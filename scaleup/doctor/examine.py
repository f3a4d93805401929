"""This module makes all checks, in the order of the table: the machine, its place among others, and what a run needs of
it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from scaleup.config.load import Loaded, load_leniently
from scaleup.config.run import RunConfig
from scaleup.doctor.devices import Driver, device_findings
from scaleup.doctor.engines import engine_findings
from scaleup.doctor.finding import Finding, findings_of
from scaleup.doctor.needs import need_of, plan_findings, torch_findings
from scaleup.doctor.network import address_findings, network_findings, port_findings
from scaleup.doctor.nodes import Place, node_findings
from scaleup.doctor.packages import package_findings
from scaleup.doctor.show import show
from scaleup.doctor.storage import storage_findings
from scaleup.doctor.system import compile_folders, limit_findings, lock_findings
from scaleup.doctor.tokens import token_findings
from scaleup.errors import ScaleupError
from scaleup.plan.cluster import nodes_of
from scaleup.plan.machine import this_machine
from scaleup.plan.resolve import resolve
from scaleup.plan.torch_facts import TorchFacts, ask_torch
from scaleup.plan.types import Plan

RUNS_DIR = "runs"
"""Is where runs go that do not say where."""


def doctor(path: Path | None, overrides: Sequence[str], place: Place, console: Console, as_json: bool = False) -> int:
    """Examine this machine, and what a run needs of it; print the table. Return the exit code: 0 when nothing fails, 2
    when the config would be refused, 1 for anything else that fails.

    Raises ScaleupError for a config that cannot be read and a place that does not exist."""
    if place.node_rank >= place.num_nodes:
        what = f"there is no node {place.node_rank} among {place.num_nodes}"
        raise ScaleupError.of("--node-rank", what, "count from 0, and give --nodes")
    loaded = None if path is None else load_leniently(path, overrides)
    findings, is_refused = examine(loaded, place)
    show(console, findings, place, as_json)
    return 2 if is_refused else int(any(finding.level == "fail" for finding in findings))


def examine(loaded: Loaded | None, place: Place) -> tuple[list[Finding], bool]:
    """Return all findings, and whether the config would be refused."""
    config = loaded.config if loaded else None
    runs_dir = Path(config.runs_dir if config else RUNS_DIR).absolute()
    if config is not None:
        interface = place.interface or config.parallel.interface
        place = replace(place, interface=interface, port=config.parallel.main_port if place.node_rank == 0 else None)
    ports = findings_of("ports", partial(_places, config, place.node_rank)) if config else []
    together = []
    if place.num_nodes > 1:  # first: the others wait
        folder = runs_dir / f".doctor-{config.name if config else 'machine'}"
        together = findings_of("nodes", partial(node_findings, place, folder))
    plan, refusals = _planned(loaded)
    facts, machine = _machine(place)
    network = findings_of("network", partial(network_findings, place.interface, _num_nodes(config, place)))
    need = need_of(config, plan) if config and plan else None
    storage = findings_of("runs_dir", partial(storage_findings, runs_dir, need))
    of_run = findings_of("plan", partial(_of_run, config, plan, place, facts)) if config and plan else []
    seen = {finding.name for finding in storage if finding.level == "fail"}
    rows = (
        machine + network + together + storage + [each for each in refusals if each.name not in seen] + of_run + ports
    )
    return rows, bool(refusals)


def _places(config: RunConfig, node_rank: int) -> Iterator[Finding]:
    yield from address_findings(config, node_rank)
    yield from port_findings(config, node_rank)


def _planned(loaded: Loaded | None) -> tuple[Plan | None, list[Finding]]:
    """Return the plan, or why it is refused. An unfinished run of this very config is no reason."""
    plans: list[Plan] = []

    def planned() -> Iterator[Finding]:
        if loaded is not None:
            plans.append(resolve(loaded, resume=True)[1])
        yield from ()

    refusals = findings_of("plan", planned)
    return (plans[0] if plans else None), refusals


def _machine(place: Place) -> tuple[TorchFacts | None, list[Finding]]:
    answers: list[TorchFacts] = []

    def devices() -> Iterator[Finding]:
        answers.append(ask_torch())
        yield from device_findings(answers[0], Driver.here(), os.environ.get("CUDA_VISIBLE_DEVICES"), this_machine())

    findings = findings_of("packages", package_findings) + findings_of("torch", devices)
    findings += findings_of("limits", limit_findings)
    ops = Path(answers[0].ops_folder) if answers and answers[0].ops_folder else None
    findings += findings_of("compile locks", lambda: lock_findings(compile_folders(ops)))
    return (answers[0] if answers else None), findings


def _num_nodes(config: RunConfig | None, place: Place) -> int | None:
    """Return the number of the run's nodes; None if it is unknown."""
    if config is None:
        return place.num_nodes if place.num_nodes > 1 else None
    return max(place.num_nodes, nodes_of(config))


def _of_run(config: RunConfig, plan: Plan, place: Place, facts: TorchFacts | None) -> Iterator[Finding]:
    yield from plan_findings(plan, place.node_rank, place.num_nodes, this_machine())
    if facts is not None:
        yield from torch_findings(plan, place.node_rank, facts)
    yield from findings_of("generator", partial(engine_findings, plan, place.node_rank))
    yield from findings_of("tokenizer", partial(token_findings, plan))
