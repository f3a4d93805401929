"""One run goes in; its part of a report comes out: what it came to first, then how it went, and from what."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from shlex import quote
from statistics import median
from typing import Any

from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.run import RunConfig
from scaleup.errors import ScaleupError, without_passwords
from scaleup.plan.stages import planner_of
from scaleup.reports.comparison import Comparison
from scaleup.reports.evaluations import newest_evaluation
from scaleup.reports.html import Html, Limits, Part, join, section, table, tag
from scaleup.reports.page.curves import curves
from scaleup.reports.page.plans import (
    config,
    lineage,
    measured_mib,
    plan_beside_run,
    planned_mib,
    whole_plan,
)
from scaleup.reports.page.results import Headline, card, compared, evaluation, headline_of, results, samples
from scaleup.reports.page.timelines import timelines
from scaleup.reports.terminal import size_text, span_text
from scaleup.reports.training import Series, read_series, training_seconds
from scaleup.runs.listing import begun, headline
from scaleup.runs.show import command_of, last_error, shown_path, state_text, steps_text
from scaleup.runs.state import RunState, read_state

COLORS = {"finished": "good", "running": "busy", "failed": "bad"}
"""Maps a run's state -> the class of its color."""
PAIRS = {
    "held_out_after": "held_out_before",
    "perplexity_after": "perplexity_before",
    "perplexity": "perplexity_before",
}
"""Maps figures of a manifest that tell how good a run is -> what they were before."""
HEADLINES = ("best_", "eval", "scores", "objective/scores", "train_loss", "loss", "reward", "accuracy")
"""Begin the names of others that do."""


@dataclass(frozen=True)
class RunView:
    """Holds what a report says of a run, read once."""

    id: str
    """Begins the names of its places on the page."""
    name: str
    state: RunState
    limits: Limits

    @classmethod
    def read(cls, path: Path, id_: str, name: str, limits: Limits) -> RunView:
        """Returns the view of the run in a folder. Raises ScaleupError if there is none."""
        return cls(id_, name, read_state(path), limits)

    @property
    def run(self) -> RunFolder:
        return self.state.run

    @cached_property
    def series(self) -> Series:
        return read_series(self.run.metrics_file)

    @cached_property
    def config(self) -> RunConfig | None:
        with suppress(ScaleupError):
            return self.run.config
        return None

    @cached_property
    def evaluation(self) -> RunFolder | None:
        """Returns the evaluation that tells how good the run is: the run itself, or the newest one in its folder."""
        if (self.run.path / "metrics.json").is_file():
            return self.run if self.state.state == "finished" else None
        return newest_evaluation(self.run)

    @property
    def is_evaluation(self) -> bool:
        """Tells whether the run itself is an evaluation."""
        return self.evaluation is not None and self.evaluation.path == self.run.path

    @cached_property
    def comparison(self) -> Comparison | None:
        return None if self.evaluation is None else compared(self.evaluation)

    @cached_property
    def headline(self) -> Headline | None:
        """Returns the figure by which the run is known."""
        if self.comparison is not None and (best := headline_of(self.comparison)) is not None:
            return best
        manifest = self.state.manifest
        figures: dict[str, Any] = manifest.metrics if manifest else dict(self.state.metrics)
        for name, before in PAIRS.items():
            if all(isinstance(figures.get(each), int | float) for each in (name, before)):
                return Headline(name, f"{figures[name]:.4g}", f"before: {figures[before]:.4g}")
        known, value = headline(figures)
        return Headline(known, f"{value:.4g}") if known is not None and known.startswith(HEADLINES) else None

    @property
    def wall_seconds(self) -> float | None:
        """Returns the seconds from the run's first start to its end, or to now; None where they are not known."""
        manifest = self.state.manifest
        if manifest is None:
            return time.time() - begun(self.run) if self.state.state == "running" else None
        seconds = datetime.fromisoformat(manifest.finished_at).timestamp() - begun(self.run)
        return seconds if seconds >= 0 else None  # a folder that was copied is younger than its run


def body(view: RunView, level: int) -> Html:
    """Returns all that a report says of a run below its heading; its sections' headings are of this level."""
    state, limits, id_ = view.state, view.limits, view.id
    manifest = state.manifest
    x_name = "rollout" if state.plan and state.plan.rollouts else "step"
    on_gpu = state.plan is not None and state.plan.groups[0].device != "cpu"
    level_mib = planned_mib(state.plan) if on_gpu else None
    seconds = training_seconds(view.series)
    return join(
        tag("p", what(view), class_="what"),
        tiles(_tiles(view)),
        tag("pre", last_error(state), class_="problem", tabindex="0") if last_error(state) else None,
        section("Evaluation", _evaluation(view) if view.evaluation else None, level=level),
        section("Deployment card", card(view.run, limits), level=level),
        section("Curves", curves(view.series, x_name, limits, level_mib, id_), level=level),
        timelines(view.run.timelines, limits, level),
        section("Samples", samples(view.run, manifest, limits), level=level),
        section("Results", results(manifest, limits) if manifest and not view.is_evaluation else None, level=level),
        section(
            "Plan and what happened",
            plan_beside_run(state.plan, manifest, view.series, state.step, seconds) if state.plan else None,
            whole_plan(state.plan, id_) if state.plan else None,
            level=level,
        ),
        section("Made from", lineage(view.run), level=level),
        section("Config", config(view.run, limits, id_, is_open=level == 2), level=level),
        section("What to run next", commands(next_commands(view)), level=level),
    )


def _evaluation(view: RunView) -> Html:
    """Returns what the evaluation has measured, and where it lies if it is not the run itself."""
    assert view.evaluation is not None, "there is one"
    where = None if view.is_evaluation else tag("p", shown_path(view.evaluation.path), class_="note")
    return join(where, evaluation(view.evaluation, view.comparison, view.limits))


def what(view: RunView) -> str:
    """Returns in a sentence what was done, with what, on what."""
    state = view.state
    parts = [f"Stage {state.stage}"]
    if (plan := state.plan) is not None:
        model, group = plan.model, plan.groups[0]
        trained = model.num_trainable_parameters
        learns = view.config is not None and planner_of(view.config).trains
        share = f", {trained:,} of them trained" if learns and trained != model.num_parameters else ""
        source = view.config.model.path if view.config else model.location
        parts.append(f"{model.architecture} with {model.num_parameters:,} parameters{share}, from {_near(source)}")
        noun = "process" if group.num_processes == 1 else "processes"
        parts.append(f"{group.num_processes} {noun} on {group.device} ({group.strategy})")
    if (recorded := view.run.lineage()) is not None:
        rows = [
            f"{each.path}{'' if each.num_rows is None else f' ({each.num_rows:,} rows)'}"
            for each in recorded.data.values()
        ]
        parts += [", ".join(_near(each) for each in rows)] if rows else []
    return without_passwords("; ".join(parts) + ".")


def _near(path: str) -> str:
    return shown_path(Path(path)) if path.startswith("/") else path


@dataclass(frozen=True)
class Tile:
    """Stands for one figure of a summary. `color` is a class: `result`, or that of a state."""

    name: str
    value: str
    note: str = ""
    color: str = ""


def tiles(shown: Iterable[Tile]) -> Html:
    """Returns a summary: the result first, and what it took."""
    return tag("dl", map(_tile, shown), class_="tiles")


def _tile(shown: Tile) -> Html:
    note = tag("dd", shown.note, class_="note") if shown.note else None
    return tag("div", tag("dt", shown.name), tag("dd", shown.value), note, class_=shown.color or None)


def result_tile(view: RunView, name: str = "") -> Tile | None:
    """Returns a run's headline, behind its name where there are several runs; None of a run that has none."""
    best = view.headline
    if best is None:
        return None
    return Tile(f"{name}: {best.name}" if name else best.name, best.value, best.note, "result")


def _tiles(view: RunView) -> Iterator[Tile]:
    state = view.state
    if (best := result_tile(view)) is not None:
        yield best
    ended = f"{state.manifest.finished_at[:16].replace('T', ' ')} UTC" if state.manifest else state.phase
    yield Tile("State", state_text(state.state), ended, COLORS.get(state.state, ""))
    if state.step is not None:
        eta = state.eta_seconds
        name = "Rollouts" if state.plan and state.plan.rollouts else "Steps"
        yield Tile(name, steps_text(state.step, state.num_steps), "" if eta is None else f"{span_text(eta)} to go")
    if (seconds := view.wall_seconds) is not None:
        starts = state.attempt.number if state.attempt else 1
        since = "from start to end" if state.state == "finished" else "since its start"
        yield Tile("Time", span_text(seconds), since if starts == 1 else f"since the first of {starts} starts")
    if rates := [rate for _, rate in view.series.get("tokens_per_second", ())]:
        yield Tile("Throughput", f"{median(rates):,.0f}", "tokens a second, median")
    planned, measured = planned_mib(state.plan), measured_mib(view.series)
    if measured is not None:
        beside = "" if planned is None else f"planned: {size_text(round(planned * 2**20))}"
        is_cpu = state.plan is not None and state.plan.groups[0].device == "cpu"
        is_beside = is_cpu and beside
        yield Tile("Memory", size_text(round(measured * 2**20)), f"{beside} beside Python" if is_beside else beside)


def next_commands(view: RunView) -> list[tuple[str, str]]:
    """Returns commands, each with what it does: those that make sense of a run as it is now."""
    state, place = view.state, quote(shown_path(view.run.path))
    if state.state == "running":
        return [
            (f"scaleup logs {place} --follow", "follow its logs"),
            (f"scaleup stop {place}", "let it save and stop"),
        ]
    if command := command_of(state):
        return [(command, "go on with it")]
    if view.config is None:
        return []
    planner, found = planner_of(view.config), []
    has_answers = planner.splits(view.config).get("test") != "prompts"  # else there is nothing to compare answers with
    if planner.makes_model and has_answers and planner.measured(view.config) and view.evaluation is None:
        needs = "" if view.config.data.test else " data.test=ROWS.jsonl"
        found.append((f"scaleup evaluate {place}{needs}", "measure it beside what it started from"))
    if view.comparison is not None:
        assert view.evaluation is not None, "what is compared was evaluated"
        path = quote(shown_path(view.evaluation.path))
        found.append((f"scaleup compare {path} -o {path}", "keep the comparison as files"))
    if planner.makes_model and planner.writes_text:
        found.append((f"scaleup chat {place}", "talk with it"))
    if planner.trains:
        found.append((f"scaleup export {place}", "write its model for other programs"))
    return [*found, (f"scaleup lineage {place}", "see what it was made from, and whether that was made again")]


def commands(rows: list[tuple[str, str]]) -> Html | None:
    shown: list[list[Part]] = [[tag("code", command), why] for command, why in rows]
    return table((), shown, "Commands", "commands") if rows else None
