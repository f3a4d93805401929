"""Folders of finished evaluations go in; columns that may be compared come out, or a refusal that names everything in
which they are not alike. No model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import read_json, read_json_lines
from scaleup.artifacts.run_folder import RunFolder, differing_keys, finished_run
from scaleup.artifacts.timeline import read_timelines
from scaleup.config.fields import is_template_file
from scaleup.config.schema import ModelConfig
from scaleup.config.stages.evaluate import EvaluateConfig
from scaleup.errors import Problem, ScaleupError
from scaleup.plan.facts import ModelFacts
from scaleup.plan.types import Plan
from scaleup.reports.comparison import Column
from scaleup.reports.training import read_series, training_seconds

NOT_READ = frozenset(
    (
        *("root", "train", "validation", "test", "few_shot", "chat_template", "supervised", "retain", "regularization"),
        *("validation_fraction", "shuffle", "packing", "streaming", "shuffle_buffer"),
    )
)
"""Names keys of `data` that an evaluation does not read, or that are compared by what they stand for."""
BESIDE_THE_FIRST = ("reward_accuracy", "judge")
"""Names figures that tell how a model differs from the first column."""
OF_THE_MODEL = ("path", "tokenizer", "revision")
"""Names keys by which a model that scores answers is told from another."""
EVALUATE = "scaleup evaluate"


@dataclass(frozen=True)
class Evaluated:
    """Stands for a finished evaluation of models on rows."""

    run: RunFolder
    config: EvaluateConfig
    plan: Plan
    figures: Mapping[str, Mapping[str, Any]]
    """Maps column -> its figures."""
    lines: Sequence[Mapping[str, Any]]
    """Holds the rows of predictions.jsonl."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows as they were asked: without what models made of them."""
        return [{key: row[key] for key in row if key not in {"scores", *self.figures}} for row in self.lines]

    def column(self, name: str) -> Column:
        """Returns a column, with what it cost."""
        scored: list[Mapping[str, float | None]] = [row["scores"][name] for row in self.lines]
        answers = [_as_text(row[name]) if name in row else None for row in self.lines]
        num_answers, facts = sum(answer is not None for answer in answers), self._facts(name)
        return Column(
            name,
            f"{self.run.path}:{name}",
            self.figures[name],
            {metric: [row[metric] for row in scored] for metric in (scored[0] if scored else {})},
            answers if num_answers else None,
            {"parameters": facts.num_parameters, **_training(self._model(name)), **self._seconds(name, num_answers)},
            facts.vocabulary if facts.task != "sequence_classification" else "",  # a class is the same in any tokens
        )

    def _facts(self, column: str) -> ModelFacts:
        return self.plan.models.get(column) or self.plan.models.get(f"models.{column}") or self.plan.model

    def _model(self, column: str) -> str:
        """Returns the path of a column's model, or of its adapter."""
        config, known = self.config, {"model": self.config.model.path, **(self.config.adapters or {})}
        known |= {name: model.path for name, model in (config.models or {}).items()}
        return known.get(column) or (config.baseline or config.model).path

    def _seconds(self, column: str, num_answers: int) -> dict[str, float | None]:
        """Returns the seconds of measuring a column, without loading, and the answers that it wrote in a second."""
        spans = [span for group in read_timelines(self.run.timelines).values() for span in group]
        took = {span.what: span.end - span.start for span in spans}
        writing = took.get(f"answers of {column}")
        rate = num_answers / writing if writing else None
        return {"evaluation seconds": took.get(f"evaluation of {column}"), "answers a second": rate}


def _as_text(output: Any) -> str:
    """Returns what a model made of a row: its answer, its class, or its scores of a pair."""
    if isinstance(output, str):
        return output
    if "prediction" in output:
        return str(output["prediction"])
    return ", ".join(f"{name} {value:.4g}" for name, value in output.items())


def _training(path: str) -> dict[str, float | None]:
    """Returns what the run at a path took to train: its parameters, the seconds of its steps and the most memory of its
    first process in MiB; None of what is not known: of a model that no run made, or one of an earlier version."""
    run, trained = RunFolder(Path(path)), None
    if not run.manifest_file.is_file():
        return {"trained parameters": None, "training seconds": None, "training MiB": None}
    with suppress(OSError, ScaleupError):
        trained = Plan.read(run.plan_file).model.num_trainable_parameters
    series = read_series(run.metrics_file)
    return {
        "trained parameters": trained,
        "training seconds": training_seconds(series),
        "training MiB": max((value for _, value in series.get("memory_mib", ())), default=None),
    }


def read_evaluation(folder: Path) -> Evaluated:
    """Returns the evaluation in a folder, or the newest one of the run there.

    Raises ScaleupError where there is none, or one that holds no scores of rows."""
    run = finished_run(folder)
    if not isinstance(run.config, EvaluateConfig):
        if (newest := newest_evaluation(run)) is None:
            raise ScaleupError.of(str(folder), "has no finished evaluation", f"{EVALUATE} {folder}")
        run = newest
    assert isinstance(run.config, EvaluateConfig), "a run's evaluations are evaluations"
    if not run.config.evaluation.metrics:
        what = "was measured on evaluation.tasks alone, and rows are compared"
        raise ScaleupError.of(str(folder), what, "name metrics of rows beside the tasks; metrics.json has all figures")
    try:
        lines = read_json_lines(run.path / "predictions.jsonl")
    except (OSError, ValueError) as error:
        what = f"its predictions.jsonl cannot be read: {error}"
        raise ScaleupError.of(str(folder), what, f"evaluate it again: {EVALUATE} RUN") from error
    if not all("scores" in row for row in lines):
        what = "was measured by an earlier version, and holds no scores of each row"
        raise ScaleupError.of(str(folder), what, f"evaluate it again: {EVALUATE} RUN")
    return Evaluated(run, run.config, Plan.read(run.plan_file), read_json(run.path / "metrics.json"), lines)


def newest_evaluation(run: RunFolder) -> RunFolder | None:
    """Returns the newest finished evaluation in a run's folder, if there is one."""
    numbers = [int(each.name) for each in (run.path / "evaluations").glob("*") if each.name.isdecimal()]
    folders = (RunFolder(run.path / "evaluations" / str(number)) for number in sorted(numbers, reverse=True))
    return next((each for each in folders if each.manifest_file.is_file()), None)


def read_columns(targets: Sequence[str]) -> tuple[list[Column], list[dict[str, Any]]]:
    """Returns the columns that are named, and the rows that all were measured on. A target is a folder, of a run or an
    evaluation, whose column `model` is taken, or `FOLDER:COLUMN`; of one folder alone all columns are.

    Raises ScaleupError for all targets that are none, and for all in which columns differ that must not."""
    problems: list[Problem] = []
    chosen: list[tuple[str, Evaluated, str]] = []
    for target in targets:
        try:
            chosen += _chosen(target, is_alone=len(targets) == 1)
        except ScaleupError as error:
            problems += error.problems
    if not problems and len(chosen) < 2:
        what = f"{targets[0]} has one column, and columns are compared"
        problems = [Problem("TARGETS", what, "name another evaluation beside it")]
    if len({(evaluated.run.path, column) for _, evaluated, column in chosen}) < len(chosen):
        problems.append(Problem("TARGETS", "name a column twice", "leave one out"))
    for name, evaluated, _ in chosen[1:]:
        problems += difference_problems(chosen[0][1], evaluated, (chosen[0][0], name))
    if problems:
        raise ScaleupError(list(dict.fromkeys(problems)))
    columns = [replace(evaluated.column(column), name=name) for name, evaluated, column in chosen]
    if problems := list(_signature_problems(columns)):
        raise ScaleupError(problems)
    return columns, chosen[0][1].rows


def _chosen(target: str, is_alone: bool) -> list[tuple[str, Evaluated, str]]:
    """Returns what a target names: for each column what it is called, its evaluation, and its name there."""
    folder, colon, column = (target, "", "") if Path(target).is_dir() else target.rpartition(":")
    evaluated = read_evaluation(Path(folder if colon else target))
    names = list(evaluated.figures)
    if is_alone and not colon:
        return [(name, evaluated, name) for name in names]
    if (wanted := column or "model") not in names:
        what = f"has no column {wanted!r}"
        raise ScaleupError.of(target, what, f"name one of {', '.join(f'{folder or target}:{name}' for name in names)}")
    return [(target.rstrip("/"), evaluated, wanted)]


def difference_problems(one: Evaluated, other: Evaluated, names: tuple[str, str]) -> Iterator[Problem]:
    """Yields, by config key, in what two evaluations with these names differ although figures follow from it: rows, how
    they are read, how models answer, and by what answers are scored."""
    if one.run.path == other.run.path:
        return
    yield from _row_problems(one, other, names)
    yield from _baseline_problems(one, other, names)
    for section, left, right in _settings(one.config, other.config):
        for key in differing_keys(left, right):
            values = ("not set" if (value := _at(each, key)) is None else repr(value) for each in (left, right))
            what = " and ".join(f"{value} in {name}" for value, name in zip(values, names, strict=True))
            yield Problem(f"{section}.{key}", f"is {what}", f"evaluate both alike: {EVALUATE} RUN {section}.{key}=...")


def _row_problems(one: Evaluated, other: Evaluated, names: tuple[str, str]) -> Iterator[Problem]:
    left, right = one.rows, other.rows
    key, remedy = f"data.{other.config.evaluation.split}", "evaluate both on the same rows"
    if len(left) != len(right):
        what = f"{names[0]} was measured on {len(left)} rows and {names[1]} on {len(right)}"
        yield Problem(key, what, remedy)
    elif different := [row["id"] for row, theirs in zip(left, right, strict=True) if row != theirs]:
        what = f"{len(different)} of {len(left)} rows of {names[1]} are others than those of {names[0]}, the first of"
        yield Problem(key, f"{what} id {different[0]}", remedy)


def _baseline_problems(one: Evaluated, other: Evaluated, names: tuple[str, str]) -> Iterator[Problem]:
    """Yields figures that tell how a model differs from its evaluation's first column, where that is another one."""
    known = [{name for figures in each.figures.values() for name in figures} for each in (one, other)]
    shared = [name for name in BESIDE_THE_FIRST if all(name in each for each in known)]
    first, second = (_told(next(iter(each.config.columns.values()))[1]) for each in (one, other))
    if shared and first != second:
        what = f"{shared[0]} is measured next to {first} in {names[0]} and to {second} in {names[1]}"
        yield Problem("evaluation.metrics", what, "evaluate both beside the same model")


def _settings(one: EvaluateConfig, other: EvaluateConfig) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yields section after section of two configs, without what may differ."""
    yield "data", _of_data(one), _of_data(other)
    unread = {"prompts", "num_return_sequences"} | (set() if _draws(one) or _draws(other) else {"seed"})
    left, right = (config.generation.model_dump(mode="json", exclude=unread) for config in (one, other))
    if one.evaluation.needs_answers and other.evaluation.needs_answers:
        yield "generation", left, right
    left, right = _of_evaluation(one), _of_evaluation(other)
    both = [key for key in left if left[key] is not None and right[key] is not None]  # else only one measures by it
    yield "evaluation", {key: left[key] for key in both}, {key: right[key] for key in both}


def _draws(config: EvaluateConfig) -> bool:
    return config.generation.temperature > 0


def _of_data(config: EvaluateConfig) -> dict[str, Any]:
    """Returns how rows are read: with the rows that examples come from, and the text of a template."""
    data, template = config.data, config.data.chat_template
    known: dict[str, Any] = data.model_dump(mode="json", exclude=set(NOT_READ))
    if template and is_template_file(template) and Path(template).is_file():
        template = Path(template).read_text(encoding="utf-8")
    known["chat_template"] = template
    if data.few_shot is not None and data.few_shot.count:
        sources = [source.model_dump(mode="json") for source in data.train or []]
        known |= {"few_shot": data.few_shot.model_dump(mode="json"), "root": data.root, "train": sources}
    return known


def _of_evaluation(config: EvaluateConfig) -> dict[str, Any]:
    """Returns what answers are scored by; None of what the metrics do without."""
    settings = config.evaluation
    reference = (settings.reference or config.baseline) if "kl" in settings.metrics else None
    scorers = {"toxicity_model": settings.toxicity_scorer, "reward_model": settings.reward_scorer}
    return {
        "labels": settings.labels,
        "judge": settings.judge and settings.judge.model_dump(mode="json") if "judge" in settings.metrics else None,
        "reference": reference and _told(reference),
        **{name: scorer and _told(scorer.model, scorer.label) for name, scorer in scorers.items()},
    }


def _told(model: ModelConfig, label: str | None = None) -> str:
    """Returns which model it is, and by which of its labels it scores."""
    parts = [getattr(model, key) for key in OF_THE_MODEL]
    return ", ".join(str(part) for part in (*parts, label) if part)


def _at(section: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        section = section[int(key)] if isinstance(section, list) else section.get(key)
    return section


def _signature_problems(columns: Sequence[Column]) -> Iterator[Problem]:
    """Yields facts in words, by which a metric was computed, that are others in another column."""
    first, *others = columns
    for other in others:
        for name in first.figures.keys() & other.figures.keys():
            one, two = first.figures[name], other.figures[name]
            if isinstance(one, str) and one != two:
                what = f"{name} is {one!r} in {first.name} and {two!r} in {other.name}"
                yield Problem("evaluation.metrics", what, "evaluate both with the same version, on the same references")
