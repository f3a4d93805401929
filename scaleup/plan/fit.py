"""A config that does not fit its devices goes in; the nearest ones that do come out (`scaleup plan --fit`). Of one that
fits: those that use the devices better. docs/design/fit.md says how they are found and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scaleup.config.run import RunConfig
from scaleup.config.stages.base import TrainingConfig
from scaleup.errors import ScaleupError
from scaleup.plan.alternatives import Alternatives
from scaleup.plan.describe import Describer
from scaleup.plan.machine import Machine
from scaleup.plan.proposals import Proposal, proposal_of
from scaleup.plan.resolve import resolve
from scaleup.plan.search import MOST_PLANS, Asked, Known, Search, is_fitting
from scaleup.plan.stages import planner_of
from scaleup.plan.strategy import FOR_ACTIVATIONS, MARGIN, NothingFits, budget_of


@dataclass(frozen=True)
class Fit:
    """Holds whether a config fits its devices, and what else could be done."""

    fits: bool
    now: Proposal | None
    """Holds the config as it is; None where `auto` found no strategy."""
    why: str
    """Says what `auto` found in that case."""
    device_memory: int
    usable: int
    """Counts the bytes of it that are planned with; the rest is left to libraries, or to activations not known."""
    proposals: tuple[Proposal, ...]
    notes: tuple[str, ...]
    """Tells what was assumed, and what could not be changed."""


def propose(asked: Asked, machine: Machine) -> Fit:
    """Returns whether a config fits, and proposals: of the same steps first, then of an adapter, then of processes.

    Raises ScaleupError with the config's mistakes as `resolve` does, and at --fit where nothing can be proposed."""
    with Describer() as describer:
        return _propose(asked, machine, Known(describer.ask))


def _propose(asked: Asked, machine: Machine, known: Known) -> Fit:
    loaded, now, fits, why = asked.load(), None, False, ""
    try:
        config, plan = resolve(loaded, machine, check_run_folder=False, sources=known.sources)
    except NothingFits as error:
        assert loaded.config is not None
        config, why = loaded.config, error.problems[0].what
        alternatives = _alternatives(loaded.config, machine, is_traced=True)
    else:
        alternatives = _alternatives(config, machine, any(row.peak is not None for row in plan.memory))
        now, fits = proposal_of("same steps", (), asked.pasted(()), config, plan), is_fitting(plan)
    memory = budget_of(alternatives.learner, machine, "cuda" if alternatives.is_cuda else "cpu").memory
    if memory is None:
        what = "how much memory a rank has is not known: this machine does not tell"
        raise ScaleupError.of("--fit", what, "describe a machine, e.g. --gpus 8 --gpu-memory 80")
    search = Search(asked, alternatives, known)
    proposals = search.better_used() if fits else search.nearest()
    is_traced = all(each.is_traced for each in (*proposals, *([now] if now else [])))
    usable = int(memory * (1 - (MARGIN if is_traced else FOR_ACTIVATIONS)))
    return Fit(fits, now, why, memory, usable, tuple(proposals), tuple(_notes(search, fits, proposals, is_traced)))


def _alternatives(config: RunConfig, machine: Machine, is_traced: bool) -> Alternatives:
    """Returns what may be changed of a config. Raises ScaleupError where nothing is trained."""
    planner = planner_of(config)
    learner = planner.trains_as(config)
    if not isinstance(learner, TrainingConfig):
        what = f"stage {config.stage} trains nothing here: each rank holds the whole model, whatever is changed"
        raise ScaleupError.of("--fit", what, "leave it out")
    return Alternatives(config, learner, planner.learner_key, machine, is_traced)


def _notes(search: Search, fits: bool, proposals: Sequence[Proposal], is_traced: bool) -> Iterator[str]:
    alternatives = search.alternatives
    if fits and not proposals and alternatives.divides:
        is_whole = alternatives.size == alternatives.sizes(alternatives.count)[-1]
        yield "the micro-batch is a rank's whole step" if is_whole else "no larger micro-batch of the same step fits"
    elif not fits and not proposals:
        yield "nothing near it fits: use a smaller model, shorter rows or larger devices"
    if not is_traced:
        yield "activations are not planned here, and what is left to them is a guess: micro-batches stay as they are"
    elif not alternatives.divides:
        yield "train.tokens_per_device stays as it is: filled by other numbers of tokens, steps have other rows"
    if alternatives.machine.memory is None and (most := max((each.host for each in proposals), default=0)):
        yield f"assumed: nodes have {most / 2**30:,.1f} GiB of main memory a rank for what is offloaded"
    zero = any(each.strategy.startswith("zero") for each in proposals)
    if zero and alternatives.learner.mixed_precision != "no":
        yield "in low precision ZeRO rounds weights where ddp and fsdp2 do not: the same steps, rounded differently"
    if search.is_cut:
        yield f"only {MOST_PLANS} candidates were planned"
