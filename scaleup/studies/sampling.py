"""The trials of a search go in; the values of a new one come out, chosen by Optuna from what the others came to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import floor
from typing import TYPE_CHECKING, Any

from scaleup.artifacts.study import StudyRecord, Trial
from scaleup.config.search import Space
from scaleup.studies.search import Params, Search

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

SEEDS = 100_003
"""Is the distance of the seeds of two searches: more than either has trials."""


def next_params(search: Search, trials: Sequence[Trial]) -> Params:
    """Returns the values of the trial after these: a point of the grid, or what a sampler draws.

    A draw's seed follows from the search's and the trial's number, so an interruption in between does not matter."""
    number = len(trials)
    if search.config.sampler == "grid":
        return search.grid[number]
    import optuna

    seed = (search.config.seed * SEEDS + number) % 2**32  # numpy takes no more
    samplers = optuna.samplers
    sampler = samplers.RandomSampler(seed) if search.config.sampler == "random" else samplers.TPESampler(seed=seed)
    asked = optuna_study(search, trials, sampler).ask(_distributions(search))
    return {key: _from_optuna(search.config.space[key], value) for key, value in asked.params.items()}


def new_trials(search: Search, record: StudyRecord, count: int) -> list[Trial]:
    """Returns the trials after those of a record, up to so many in all, as they are where none waits for another."""
    trials = list(record.trials)
    while len(trials) < count:
        trials.append(Trial(number=len(trials), params=dict(next_params(search, trials))))
    return trials[len(record.trials) :]


def optuna_study(search: Search, trials: Sequence[Trial], sampler: Any = None) -> Study:
    """Returns Optuna's study of these trials, in memory."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=list(search.config.objectives.values()), sampler=sampler)
    study.add_trials(list(_told(search, trials)))
    return study


def _told(search: Search, trials: Sequence[Trial]) -> Iterator[Any]:
    from optuna.trial import TrialState, create_trial

    distributions = _distributions(search)
    states = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL, "running": TrialState.RUNNING}
    for trial in trials:
        state = states.get(trial.state, TrialState.PRUNED)
        yield create_trial(
            state=state,
            values=[trial.values[name] for name in search.config.objectives] if trial.state == "finished" else None,
            params={key: _to_optuna(space, trial.params[key]) for key, space in search.config.space.items()},
            distributions=distributions,
            intermediate_values={step: value for step, value in trial.rungs.items() if value is not None},
        )


def _distributions(search: Search) -> dict[str, BaseDistribution]:
    return {key: _distribution(space) for key, space in search.config.space.items()}


def _distribution(space: Space) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.choice is not None:
        return CategoricalDistribution([_text(each) for each in space.choice])
    if space.float is not None:
        low, high = space.float
        if space.step is not None:
            high = low + floor((high - low) / space.step + 1e-9) * space.step
        return FloatDistribution(low, high, log=space.log, step=space.step)
    assert space.int is not None
    first, last = space.int
    step = round(space.step or 1)
    return IntDistribution(first, last - (last - first) % step, log=space.log, step=step)


def _to_optuna(space: Space, value: Any) -> Any:
    """Returns a value as Optuna has it: a choice may be of any kind, and is its JSON there."""
    return _text(value) if space.choice is not None else value


def _text(value: Any) -> str:
    return json.dumps(value, default=str)


def _from_optuna(space: Space, value: Any) -> Any:
    return json.loads(value) if space.choice is not None else value
