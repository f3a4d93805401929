"""This module shows how far a search is: a bar on a terminal with a line for each trial, a line now and then in a
log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import TaskID

from scaleup.artifacts.metrics_log import last_metrics
from scaleup.artifacts.study import StudyRecord, Trial
from scaleup.launcher.watch import progress_bars
from scaleup.reports.terminal import span_text
from scaleup.studies.search import Search
from scaleup.studies.trials import TrialProcess

LINE_SECONDS = 15.0
LOOK_SECONDS = 1.0


class SearchWatch:
    """Shows steps done of all trials together, when they will be, and the last metrics of those that run. Use as a
    context manager."""

    def __init__(self, search: Search, record: StudyRecord, num_steps: int, console: Console) -> None:
        """`num_steps`: how many steps all trials have together."""
        self._search, self._record, self._num_steps, self._console = search, record, num_steps, console
        self._bar = progress_bars(console)
        self._whole = self._bar.add_task(f"{record.study} steps", total=num_steps, shown="")
        self._tasks: dict[int, TaskID] = {}
        self._began, self._done_before = time.monotonic(), record.num_steps
        self._next_look, self._next_line = 0.0, self._began + LINE_SECONDS

    def __enter__(self) -> SearchWatch:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Prints a line of its own, above the bars."""
        self._console.print(line, soft_wrap=True)

    def refresh(self, running: Sequence[TrialProcess]) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        shown = {each.trial.number: self._last(each.trial) for each in running}
        done = sum(trial.steps for trial in self._record.trials if trial.number not in shown)
        done += sum(step for step, _ in shown.values())
        left = self._left(done, now)
        self._bar.update(self._whole, completed=done)
        for number in [number for number in self._tasks if number not in shown]:
            self._bar.remove_task(self._tasks.pop(number))
        for each in running:
            number = each.trial.number
            step, metrics = shown[number]
            if number not in self._tasks:
                self._tasks[number] = self._bar.add_task(self._name(number), total=each.trial.stop_at_step, shown="")
            self._bar.update(self._tasks[number], completed=step, shown=metrics)
        if not self._console.is_terminal and now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            parts = [
                f"{self._name(number)} step {step} {metrics}".rstrip() for number, (step, metrics) in shown.items()
            ]
            more = [] if left is None else [f"{span_text(left)} to go"]
            self.say("; ".join([f"{done} of {self._num_steps} steps", *parts, *more]))

    def _left(self, done: int, now: float) -> float | None:
        """Returns the seconds that the steps that are left take, at the pace of those since the search was started."""
        new = done - self._done_before
        return (now - self._began) / new * max(0, self._num_steps - done) if new > 0 else None

    def _last(self, trial: Trial) -> tuple[int, str]:
        """Returns the step that a running trial has logged last, and the objectives that it had."""
        metrics = last_metrics(self._search.trial_run(trial.number).metrics_file)
        names = dict.fromkeys([*self._record.objectives, "loss"])
        shown = [f"{name} {metrics[name]:.4g}" for name in names if isinstance(metrics.get(name), (int, float))]
        return max(trial.steps, int(metrics.get("step", 0))), " ".join(shown)

    def _name(self, number: int) -> str:
        return self._search.folder.trial_folder(number).name
