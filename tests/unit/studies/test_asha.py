"""Which trial goes on follows from what the trials were at their rungs, and from nothing else."""

from __future__ import annotations

import random
from collections.abc import Mapping

from scaleup.artifacts.study import Trial
from scaleup.studies.asha import Halving

HALVING = Halving(rungs=(4, 12), reduction_factor=3, direction="minimize", num_trials=9)


def paused(number: int, **rungs: float) -> Trial:
    values: Mapping[int, float] = {int(step[1:]): value for step, value in rungs.items()}
    return Trial(number=number, params={}, state="paused", steps=max(values), rungs=dict(values))


def test_a_new_trial_stops_at_the_first_rung_and_one_that_has_passed_all_at_its_end() -> None:
    assert HALVING.stop_after(Trial(number=0, params={})) == 4
    assert HALVING.stop_after(paused(0, s4=1.0)) == 12
    assert HALVING.stop_after(paused(0, s4=1.0, s12=0.5)) is None


def test_nobody_goes_on_before_there_are_enough_to_compare() -> None:
    assert HALVING.promotable([paused(0, s4=1.0), paused(1, s4=2.0)]) is None


def test_the_best_in_three_goes_on() -> None:
    trials = [paused(0, s4=3.0), paused(1, s4=1.0), paused(2, s4=2.0)]
    assert HALVING.promotable(trials) is trials[1]
    trials[1].state = "running"
    assert HALVING.promotable(trials) is None, "the second best is none of the best third"


def test_the_lowest_rung_comes_first() -> None:
    high = [paused(0, s4=0.1, s12=0.3), paused(1, s4=0.2, s12=0.2), paused(2, s4=0.3, s12=0.4)]
    low = [paused(number, s4=0.01 * number) for number in range(3, 9)]
    assert HALVING.promotable([*high, *low]) is low[0]
    assert HALVING.promotable([*high, *(paused(number, s4=9) for number in range(3, 9))]) is high[1]


def test_what_is_to_be_maximized_goes_on_with_the_greatest() -> None:
    upwards = Halving((4,), 3, "maximize", 3)
    trials = [paused(0, s4=3.0), paused(1, s4=1.0), paused(2, s4=2.0)]
    assert upwards.promotable(trials) is trials[0]


def test_what_has_failed_or_is_no_number_never_goes_on() -> None:
    trials = [paused(0, s4=1.0), paused(1, s4=2.0), paused(2, s4=3.0)]
    trials[0].state = "failed"
    trials[1].rungs[4] = None
    assert HALVING.promotable(trials) is None


def test_few_trials_have_a_finished_one_too() -> None:
    trials = [paused(0, s4=1.0), paused(1, s4=0.5)]
    assert HALVING.promotable(trials) is None
    assert HALVING.last_promotable(trials) is trials[1]
    trials[0].state = "finished"
    assert HALVING.last_promotable(trials) is None


def search(halving: Halving, num_steps: int, curve: dict[int, float]) -> tuple[list[Trial], int]:
    """A search one trial after another, in which a trial's objective is its own number at every step."""
    trials: list[Trial] = []
    while True:
        chosen = Trial(number=len(trials), params={}) if len(trials) < halving.num_trials else None
        trials += [chosen] if chosen is not None else []
        chosen = chosen or halving.promotable(trials) or halving.last_promotable(trials)
        if chosen is None:
            return trials, sum(trial.steps for trial in trials)
        stop = halving.stop_after(chosen)
        chosen.steps, chosen.state = (num_steps, "finished") if stop is None else (stop, "paused")
        if stop is not None:
            chosen.rungs[stop] = curve[chosen.number]


def test_a_whole_search_finishes_the_best_in_the_steps_that_were_foretold() -> None:
    draw = random.Random(0)
    for size in (1, 2, 5, 9, 27):
        curve = {number: draw.random() for number in range(size)}
        halving = Halving((4, 12), 3, "minimize", size)
        trials, steps = search(halving, 36, curve)
        best = min(trials, key=lambda trial: curve[trial.number])
        assert best.state == "finished"
        assert steps == halving.num_steps(36)
    assert HALVING.num_steps(36) == 9 * 4 + 3 * 8 + 1 * 24 < 9 * 36 / 3
