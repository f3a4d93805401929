"""Rows that several models were measured on go in; how they differ comes out: differences with their intervals,
McNemar's test, wins, and the rows where they differ most.

numpy is imported where samples are drawn: the control plane does without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import comb, isclose, isfinite
from typing import TYPE_CHECKING, Any

from scaleup.errors import Problem, ScaleupError
from scaleup.plan.extras import remedy

if TYPE_CHECKING:
    import numpy as np

DRAWN_AT_ONCE = 100
"""Bounds the bootstrap samples that are in memory at a time."""
SHARES = frozenset(
    (
        *("accuracy", "f1_macro", "f1_micro", "likelihood_accuracy", "likelihood_f1_macro", "likelihood_f1_micro"),
        *("exact_match", "toxicity", "toxicity_max", "distinct_1", "distinct_2", "judge"),
        *("likelier", "likelier_a_token", "reward_accuracy", "accuracy_chosen_longer", "accuracy_chosen_shorter"),
    )
)
"""Names figures between 0 and 1, whose differences are shown in percentage points too."""
PERCENT = frozenset(
    ("squad_exact_match", "squad_f1", "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf", "meteor")
)
"""Names figures between 0 and 100, whose differences are percentage points."""
GRADED = PERCENT - {"squad_exact_match"}
"""Names metrics by which a row is neither right nor wrong, even where all happen to score 0."""
LOWER = frozenset(("loss", "perplexity", "toxicity", "kl", "brier", "mse", "mae"))
"""Names metrics of which the lower score wins."""
OF_TOKENS = frozenset(("loss", "perplexity", "kl", "kl_per_token"))
"""Names figures that mean something else for models with other tokens."""
COUNTS = ("rows", "pairs")
"""Names figures that count what was measured."""
UNTELLING = frozenset(("loss", "length_words", "length_characters"))
"""Names metrics by which rows that differ are shown only where there is no other."""
BY_ROW = "_by_row"
"""Ends the name of a mean over rows, where a metric's own figure is none."""

Values = Sequence[float | None]
"""Holds a number for each row; None of rows that a metric leaves out."""


@dataclass(frozen=True)
class Column:
    """Holds what was measured of one model, and what it cost."""

    name: str
    source: str
    """Tells where it is from: the folder of the evaluation, and its column there."""
    figures: Mapping[str, Any]
    """Maps a figure's name -> it; `NAME_interval` -> its 95 % interval."""
    scores: Mapping[str, Values]
    """Maps a metric's name -> its score of each row."""
    answers: Sequence[str | None] | None = None
    """Holds what the model answered or predicted, in the rows' order, None of rows that it leaves out; None where
    there is nothing of any."""
    cost: Mapping[str, float | None] = field(default_factory=dict)
    """Maps what it took -> how much; None where it is not known."""
    vocabulary: str = ""
    """Is a hash of the model's tokens."""


@dataclass(frozen=True)
class Figure:
    """Holds a metric's figure of one column, and how it differs from the first column's."""

    value: float | None
    interval: list[float] | None = None
    """Holds the ends of its own 95 % interval."""
    difference: float | None = None
    points: float | None = None
    """Is the difference in percentage points, where the metric is a share."""
    difference_interval: list[float] | None = None
    """Holds the ends of the difference's 95 % interval, by paired bootstrap over the rows."""
    p_value: float | None = None
    """Is that of McNemar's exact test, where each row is right or wrong."""


@dataclass(frozen=True)
class Wins:
    """Counts the rows in which a column scores better than the first, as well, and worse."""

    wins: int
    ties: int
    losses: int

    @property
    def rate(self) -> float | None:
        """Returns (wins + ties / 2) / rows; None without rows."""
        rows = self.wins + self.ties + self.losses
        return (self.wins + self.ties / 2) / rows if rows else None


@dataclass(frozen=True)
class Sample:
    """Holds a row, by its number, with what each column answered and how that scores."""

    row: Mapping[str, Any]
    answers: Mapping[str, str]
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """Holds how columns differ from the first of them."""

    columns: Sequence[Column]
    num_rows: int
    figures: Mapping[str, Mapping[str, Figure]]
    """Maps metric -> column -> figure."""
    wins: Mapping[str, Mapping[str, Wins]]
    """Maps metric -> column, without the first -> wins over the first."""
    by: str | None
    """Names the metric by which the samples are chosen."""
    samples: Sequence[Sample]
    notes: Sequence[str]


def compare_columns(
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
    by: Sequence[str] = (),
    num_samples: int = 1000,
    num_shown: int = 5,
) -> Comparison:
    """Returns how columns, which were measured on the same `rows` with the same settings, differ from the first of
    them. `by` names the metrics by which rows are won, by default `reward` and `judge` where they were
    measured; `num_samples` counts bootstrap samples; `num_shown` the rows that differ most, by the first of `by`.

    Raises ScaleupError for a metric in `by` that has no score of each row in every column."""
    first, *others = columns
    common = [name for name in first.scores if all(name in other.scores for other in others)]
    if strangers := [name for name in by if name not in common]:
        what = f"{strangers[0]!r} has no score of each row in all columns"
        raise ScaleupError(Problem("--by", what, f"use one of {', '.join(common)}" if common else "leave it out"))
    chosen = list(dict.fromkeys(by)) or [name for name in ("reward", "judge") if name in common]
    most = next(iter([*chosen, *(name for name in common if name not in UNTELLING), *common]), None)
    return Comparison(
        columns,
        len(rows),
        dict(_figures(columns, num_samples)),
        {name: {each.name: wins(name, first.scores[name], each.scores[name]) for each in others} for name in chosen},
        most,
        _samples(columns, rows, most, num_shown) if most else [],
        list(_notes(columns)),
    )


def _notes(columns: Sequence[Column]) -> Iterator[str]:
    """Yields what is not compared, and why."""
    first, *others = columns
    strange = [each.name for each in others if each.vocabulary != first.vocabulary]
    if strange and OF_TOKENS.intersection(first.figures):
        yield f"{', '.join(strange)}: other tokens than {first.name}, so that loss, perplexity and kl do not compare"
    for other in others:
        if missing := [name for name in _names([first]) if name not in _names([other])]:
            yield f"{other.name}: was not measured by {', '.join(missing)}"
        shared = [name for name in first.scores if name in other.scores]
        if unlike := [name for name in shared if _left_out(first.scores[name]) != _left_out(other.scores[name])]:
            what = f"leaves out other rows than {first.name} in {', '.join(unlike)}"
            yield f"{other.name}: {what}: each figure is of the rows that its model has"


def _left_out(scores: Values) -> list[int]:
    return [place for place, score in enumerate(scores) if score is None]


def _names(columns: Sequence[Column]) -> list[str]:
    """Returns the names of the columns' figures: what is a number, but for counts of rows."""
    named = dict.fromkeys(name for column in columns for name in column.figures)
    return [name for name in named if name not in COUNTS and any(_number(each.figures.get(name)) for each in columns)]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _figures(columns: Sequence[Column], num_samples: int) -> Iterator[tuple[str, dict[str, Figure]]]:
    """Yields each metric, with a figure for each column. A metric whose figure is no mean over rows (BLEU of a corpus,
    the loss of all tokens) has a line for that mean beside it, which can be compared row by row."""
    for name in _names(columns):
        scored = [column.scores.get(name) for column in columns]
        means = [None if scores is None else _mean(scores) for scores in scored]
        is_mean = all(
            mean is None or value is None or isclose(mean, value, rel_tol=1e-6, abs_tol=1e-9)
            for mean, value in zip(means, (column.figures.get(name) for column in columns), strict=True)
        )
        yield name, {each.name: _figure(name, each, columns[0], num_samples if is_mean else 0) for each in columns}
        if not is_mean:
            by_row = f"{name}{BY_ROW}"
            shown = [
                Column(each.name, "", {by_row: mean}, {by_row: scores}, vocabulary=each.vocabulary)
                for each, mean, scores in zip(columns, means, scored, strict=True)
                if mean is not None and scores is not None
            ]
            if shown and shown[0].name == columns[0].name:
                yield by_row, {each.name: _figure(by_row, each, shown[0], num_samples) for each in shown}


def _figure(name: str, column: Column, first: Column, num_samples: int) -> Figure:
    """Returns a column's figure beside the first column's. Without samples nothing is told of rows."""
    value, start = column.figures.get(name), first.figures.get(name)
    interval = column.figures.get(f"{name}_interval")
    strange = name.removesuffix(BY_ROW) in OF_TOKENS and column.vocabulary != first.vocabulary
    if column is first or strange or value is None or start is None or not isfinite(value - start):
        return Figure(value, interval)
    difference = value - start
    factor = 100.0 if name in SHARES else 1.0 if name.removesuffix(BY_ROW) in PERCENT else None
    scores, theirs = column.scores.get(name), first.scores.get(name)
    if not num_samples or scores is None or theirs is None:
        return Figure(value, interval, difference, factor and factor * difference)
    return Figure(
        value,
        interval,
        difference,
        factor and factor * difference,
        paired_interval(theirs, scores, num_samples),
        None if name.removesuffix(BY_ROW) in GRADED | UNTELLING else mcnemar(theirs, scores),
    )


def _mean(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def sample_counts(num_rows: int, num_samples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields how often each row (N) is in bootstrap samples of as many rows (Efron 1979), (B, N), some at a time. They
    are the same for all metrics and models, so that differences between these are of the same rows."""
    np = _numpy()
    drawn = np.random.default_rng(seed)
    for first in range(0, num_samples if num_rows else 0, DRAWN_AT_ONCE):
        size = min(DRAWN_AT_ONCE, num_samples - first)
        yield drawn.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=size).astype(float)


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        what = "intervals are computed by numpy, not installed here"
        raise ScaleupError.of("scaleup[train]", what, remedy("train")) from error
    return numpy


def paired_interval(before: Values, after: Values, num_samples: int) -> list[float] | None:
    """Returns the 2.5th and 97.5th percentile of mean(after) - mean(before) over bootstrap samples of the rows, which
    are the same for both; None where there is nothing to draw from."""
    np, drawn = _numpy(), []
    rows = np.array([before, after], float).T  # None becomes NaN
    known = ~np.isnan(rows)
    for counts in sample_counts(len(before), num_samples):
        with np.errstate(invalid="ignore"):  # a sample may hold none of the rows that have a score
            means = (counts @ np.where(known, rows, 0.0)) / (counts @ known)
        drawn += [float(each) for each in means[:, 1] - means[:, 0] if isfinite(each)]
    return [float(edge) for edge in np.percentile(drawn, (2.5, 97.5))] if drawn else None


def mcnemar(before: Values, after: Values) -> float | None:
    """Returns the two-sided p value of McNemar's exact conditional test (Fagerland, Lydersen and Laake 2013): of the
    rows in which one is right and the other wrong, either may be with probability 1/2. It is 1 where there are none;
    None where a score is neither 0 nor 1, or neither 0 nor 100."""
    pairs = [(one, other) for one, other in zip(before, after, strict=True) if one is not None and other is not None]
    found = {score for pair in pairs for score in pair}
    if not pairs or not (found <= {0, 1} or found <= {0, 100}):
        return None
    lost = sum(one > other for one, other in pairs)
    won = sum(one < other for one, other in pairs)
    return exact_binomial(lost, won)


def exact_binomial(lost: int, won: int) -> float:
    """Returns min(1, 2 P(X <= min(lost, won))) for X ~ Binomial(lost + won, 1/2)."""
    trials = lost + won
    below = sum(comb(trials, count) for count in range(min(lost, won) + 1))
    return min(1.0, 2 * below / 2**trials)


def wins(metric: str, before: Values, after: Values) -> Wins:
    """Returns in how many rows `after` scores better than `before`: higher, but for metrics in LOWER. Rows that either
    leaves out are not counted."""
    sign = -1 if metric in LOWER else 1
    pairs = [(sign * x, sign * y) for x, y in zip(before, after, strict=True) if x is not None and y is not None]
    return Wins(sum(x < y for x, y in pairs), sum(x == y for x, y in pairs), sum(x > y for x, y in pairs))


def _samples(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], by: str, count: int) -> list[Sample]:
    """Returns the rows with the greatest distance between two columns' scores, and of equal ones the first."""
    distances = {}
    for place in range(len(rows)):
        known = [score for column in columns if (score := column.scores[by][place]) is not None]
        distances[place] = max(known) - min(known) if known else 0.0
    most = sorted((place for place in distances if distances[place] > 0), key=lambda place: -distances[place])
    return [
        Sample(
            rows[place],
            {each.name: each.answers[place] or "" for each in columns if each.answers is not None},
            {each.name: each.scores[by][place] for each in columns},
        )
        for place in most[:count]
    ]
