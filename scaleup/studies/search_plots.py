"""A search that has ended goes in; Optuna's plots of it come out as PNG files in its folder."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from scaleup.artifacts.files import aside_of
from scaleup.artifacts.study import StudyRecord
from scaleup.studies.sampling import optuna_study
from scaleup.studies.search import Search


def plot(search: Search, record: StudyRecord) -> list[str]:
    """Draws the history of each objective, the values of each key against it, and the Pareto front of several
    objectives. Returns the names of the files; none where matplotlib is not installed, or no trial finished."""
    finished = [trial for trial in record.trials if trial.state == "finished"]
    if not finished or importlib.util.find_spec("matplotlib") is None:
        return []
    import matplotlib

    matplotlib.use("Agg")  # needs no display
    from matplotlib import pyplot

    drawn = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's plots are marked as experimental
        for name, draw in _plots(search, record):
            axes = draw()
            axes = axes.flat[0] if hasattr(axes, "flat") else axes
            file = search.folder.path / name
            axes.figure.set_size_inches(9, 5)
            axes.figure.savefig(aside_of(file), format="png", dpi=120, bbox_inches="tight")
            aside_of(file).replace(file)
            pyplot.close("all")
            drawn.append(name)
    return drawn


def _plots(search: Search, record: StudyRecord) -> Iterator[tuple[str, Callable[[], Any]]]:
    from optuna.visualization import matplotlib as plots

    study, names = optuna_study(search, record.trials), list(record.objectives)
    for place, name in enumerate(names):
        suffix = "" if len(names) == 1 else f"-{name.replace('/', '-')}"

        def target(trial: Any, place: int = place) -> float:
            return float(trial.values[place])

        options = {"target": target, "target_name": name}
        for kind in ("optimization_history", "parallel_coordinate", "slice"):
            yield f"{kind}{suffix}.png", partial(getattr(plots, f"plot_{kind}"), study, **options)
    if 2 <= len(names) <= 3:
        yield "pareto_front.png", partial(plots.plot_pareto_front, study, target_names=names)
    if search.config.method == "asha":
        yield "intermediate_values.png", partial(plots.plot_intermediate_values, study)
