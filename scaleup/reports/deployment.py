"""Measurements of a model and its variants go in; what they come to comes out: a verdict on each, a table, a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleup.reports.plots import figure

NOTICEABLE = 0.05
"""Bounds what counts as a difference: ratios nearer to one than this do not: timings vary as much from run to run on
one machine."""
MANY_ZEROS = 0.1


@dataclass(frozen=True)
class Cost:
    """Describes a quantity that a user pays with: bytes, memory, or time (as a speed)."""

    name: str
    value: float
    is_better_low: bool


def costs(measured: Mapping[str, Any]) -> Iterator[Cost]:
    """Yields the costs of a measurement; a speed is the better one of eager and compiled inference."""
    yield Cost("bytes", measured["bytes"], True)
    yield Cost("peak memory", measured["peak_memory_mib"], True)
    yield Cost("prefill", 1000 / best(measured, "prefill_ms", lowest=True), False)
    if measured["eager"].get("decode_tokens_per_second"):
        yield Cost("decode", best(measured, "decode_tokens_per_second"), False)


def best(measured: Mapping[str, Any], key: str, lowest: bool = False) -> float:
    """Returns the highest (or lowest) figure of eager and compiled inference."""
    values = [measured[how][key] for how in ("eager", "compiled") if measured.get(how, {}).get(key)]
    return min(values) if lowest else max(values)


def verdict(measured: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `gain`, whether a variant is better than the base in any cost, and `words`: in which, what it costs
    elsewhere, and what it does to quality."""
    gains, losses = [], []
    for one, other in zip(costs(measured), costs(base), strict=True):
        ratio = one.value / other.value
        better = 1 / ratio if one.is_better_low else ratio
        if better > 1 + NOTICEABLE:
            gains.append(f"{one.name} x {ratio:.2f}")
        elif better < 1 - NOTICEABLE:
            losses.append(f"{one.name} x {ratio:.2f}")
    parts = [", ".join(gains) if gains else _no_gain(measured)]
    if losses:
        parts.append(f"{'but ' if gains else ''}{', '.join(losses)}")
    return {"gain": bool(gains), "words": "; ".join([*parts, _quality(measured["quality"])])}


def _no_gain(measured: Mapping[str, Any]) -> str:
    if (measured["zeros"] or 0) <= MANY_ZEROS:
        return "none"
    return f"none: {measured['zeros']:.0%} of the weights are zero, and are stored and multiplied like any other number"


def _quality(quality: Mapping[str, Any]) -> str:
    low, high = quality["perplexity_ratio_interval"]
    if low <= 1 <= high:
        return "these rows show no difference in perplexity"
    return f"perplexity x {quality['perplexity_ratio']:.2f} ({low:.2f} to {high:.2f})"


def markdown(models: Mapping[str, Mapping[str, Any]], base: str, where: str, machine: Mapping[str, str]) -> str:
    """Returns the card as Markdown. `models`: name -> measurement with its quality, and a verdict but for the base."""
    names, rows = card_table(models, base)
    lines = [_line(names), _line(["---"] * len(names)), *map(_line, rows)]
    quality = models[base]["quality"]
    about = "\n".join(f"- {key}: {value}" for key, value in machine.items())
    return f"""# Deployment card

{chr(10).join(lines)}

Speed and memory: one sequence, a process for each model, medians. Speeds are eager / compiled where both were measured;
memory is the process's peak above the bare interpreter, without compilation. Quality: {quality["rows"]} rows of
{where}, {quality["tokens"]} tokens; intervals by drawing rows with replacement. KL and agreement are means over
tokens, in nats and as a share.

{about}
"""


def card_table(models: Mapping[str, Mapping[str, Any]], base: str) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a card's table: a row a model."""
    names = ["model", "parameters (without embeddings)", "MB", "bits a weight", "zeros", "perplexity (95 %)"]
    names += ["task", "KL to the first", "same top token", "prefill tokens/s", "decode tokens/s", "token ms p50, p95"]
    names += ["peak MiB", "real gain?"]
    return names, [_cells(name, measured, name == base) for name, measured in models.items()]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(name: str, measured: Mapping[str, Any], is_base: bool) -> list[str]:
    quality = measured["quality"]
    low, high = quality["perplexity_interval"]
    scores = [(key, value) for key, value in (measured.get("task") or {}).items() if not key.endswith("_interval")]
    task = ", ".join(f"{key} {value if isinstance(value, str) else f'{value:.3g}'}" for key, value in scores) or "–"
    gain = "–" if is_base else f"{'yes' if measured['verdict']['gain'] else 'no'}: {measured['verdict']['words']}"
    latency = [measured["eager"].get(f"latency_p{share}_ms") for share in (50, 95)]
    return [
        name,
        f"{measured['num_parameters']:,} ({measured['num_non_embedding_parameters']:,})",
        f"{measured['bytes'] / 1e6:.1f}",
        f"{measured['bits_per_parameter']:.1f}",
        "–" if measured["zeros"] is None else f"{measured['zeros']:.1%}",
        f"{quality['perplexity']:.2f} ({low:.2f} to {high:.2f})",
        task,
        "–" if is_base else f"{quality['divergence']:.4f}",
        "–" if is_base else f"{quality['agreement']:.1%}",
        _both(measured, "prefill_tokens_per_second"),
        _both(measured, "decode_tokens_per_second"),
        ", ".join(f"{value:.1f}" for value in latency) if all(latency) else "–",
        f"{measured['peak_memory_mib']:.0f}",
        gain,
    ]


def _both(measured: Mapping[str, Any], key: str) -> str:
    eager = measured["eager"].get(key)
    if not eager:
        return "–"
    if "compiled" not in measured:
        return f"{eager:.1f}"
    compiled = measured["compiled"].get(key)
    return f"{eager:.1f} / {f'{compiled:.1f}' if compiled else 'failed'}"


def pareto(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the models that no other beats in bytes, speed and perplexity at once."""
    points = {
        name: (
            measured["bytes"],
            best(measured, "prefill_ms", lowest=True),
            _decode_ms(measured),
            measured["quality"]["perplexity"],
        )
        for name, measured in models.items()
    }
    return [
        name
        for name, mine in points.items()
        if not any(other != mine and all(o <= m for o, m in zip(other, mine, strict=True)) for other in points.values())
    ]


def _decode_ms(measured: Mapping[str, Any]) -> float:
    return (
        1000 / best(measured, "decode_tokens_per_second") if measured["eager"].get("decode_tokens_per_second") else 0.0
    )


def plot(models: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Draws perplexity against bytes and against speed into a PNG; the points of the Pareto front are filled."""
    front, generates = pareto(models), any(map(_decode_ms, models.values()))  # variants have the same task
    with figure(file, 2, figsize=(11, 4.5), sharey=True) as (_, (left, right)):
        for name, measured in models.items():
            milliseconds = _decode_ms(measured) or best(measured, "prefill_ms", lowest=True)
            low, high = measured["quality"]["perplexity_interval"]
            middle = measured["quality"]["perplexity"]
            for axes, across in ((left, measured["bytes"] / 1e6), (right, 1000 / milliseconds)):
                axes.errorbar(
                    across, middle, yerr=[[max(0, middle - low)], [max(0, high - middle)]], fmt="o", capsize=2,
                    color="C0", markerfacecolor="C0" if name in front else "white",
                )  # fmt: skip
                axes.annotate(name, (across, middle), textcoords="offset points", xytext=(5, 5), fontsize=8)
        middles = [measured["quality"]["perplexity"] for measured in models.values()]
        scale = "log" if max(middles) > 3 * min(middles) else "linear"
        left.set(xlabel="MB on disk", ylabel="perplexity", yscale=scale)
        right.set(xlabel="decoded tokens a second" if generates else "texts a second")
        for axes in (left, right):
            axes.grid(alpha=0.3, which="both")
