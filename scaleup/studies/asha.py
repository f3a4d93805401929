"""Trials of a search go in; which one trains next, and how far, comes out: asynchronous successive halving (Li et al.,
2018, arXiv:1810.05934).

Trials are compared at rungs: after min_steps, and reduction_factor times as many steps at each rung after it. Of those
that have come to a rung, the best one in reduction_factor goes on from its checkpoint. Nothing waits for a rung to be
full; but where there is a choice, new trials come before promotions, and lower rungs before higher ones. The paper's
order is the other way round, for searches without an end: it promotes early on, by few comparisons, and spends more
steps on as many trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scaleup.artifacts.study import Direction, Trial, cost


@dataclass(frozen=True)
class Halving:
    """Holds what a decision follows from, beside the trials."""

    rungs: tuple[int, ...]
    """Lists the steps at which trials are compared, of which the last one lies before their end."""
    reduction_factor: int
    direction: Direction
    num_trials: int

    def stop_after(self, trial: Trial) -> int | None:
        """Returns the rung at which a trial that goes on is compared next; None: it goes on to its end."""
        return next((rung for rung in self.rungs if rung not in trial.rungs), None)

    def promotable(self, trials: Sequence[Trial]) -> Trial | None:
        """Returns the trial to go on with: the best of the lowest rung at which one is due."""
        for rung in self.rungs:
            ranked = sorted(
                (trial for trial in trials if rung in trial.rungs), key=lambda each: self._order(each, rung)
            )
            for trial in ranked[: len(ranked) // self.reduction_factor]:
                if self._waits_at(trial, rung):
                    return trial
        return None

    def last_promotable(self, trials: Sequence[Trial]) -> Trial | None:
        """Returns the trial to go on with where nothing else is left to do: the best of the highest rung, unless one
        has come to its end. So a search of few trials has a finished one too."""
        if any(trial.state == "finished" for trial in trials):
            return None
        for rung in reversed(self.rungs):
            waiting = [trial for trial in trials if self._waits_at(trial, rung)]
            if waiting:
                return min(waiting, key=lambda each: self._order(each, rung))
        return None

    def num_steps(self, of_a_trial: int) -> int:
        """Returns how many steps the trials have together, if none fails: what progress is measured by."""
        total, count, before = 0, self.num_trials, 0
        for rung in (*self.rungs, of_a_trial):
            total += count * (rung - before)
            count, before = max(1, count // self.reduction_factor), rung
        return total

    def _order(self, trial: Trial, rung: int) -> tuple[float, int]:
        return cost(trial.rungs[rung], self.direction), trial.number

    def _waits_at(self, trial: Trial, rung: int) -> bool:
        is_last = max(trial.rungs, default=0) == rung
        is_number = trial.rungs.get(rung) is not None
        return trial.state in ("paused", "pruned") and is_last and is_number
