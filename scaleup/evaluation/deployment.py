"""What measurements of variants come to: whether each is a real gain, in words; a table; a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import aside_of

NOTICEABLE = 0.05
"""Ratios nearer to one than this are taken for none: timings of one machine differ as much from run to run."""
MANY_ZEROS = 0.1


@dataclass(frozen=True)
class Cost:
    """What a user pays, of one kind."""

    name: str
    value: float
    is_better_low: bool


def costs(found: Mapping[str, Any]) -> Iterator[Cost]:
    """Of a measurement; speeds are the better one of eager and compiled inference."""
    yield Cost("bytes", found["bytes"], True)
    yield Cost("peak memory", found["peak_memory_mib"], True)
    yield Cost("prefill", 1000 / best(found, "prefill_ms", lowest=True), False)
    if found["eager"].get("decode_tokens_per_second"):
        yield Cost("decode", best(found, "decode_tokens_per_second"), False)


def best(found: Mapping[str, Any], key: str, lowest: bool = False) -> float:
    """Of eager and compiled inference."""
    values = [found[how][key] for how in ("eager", "compiled") if found.get(how, {}).get(key)]
    return min(values) if lowest else max(values)


def verdict(found: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """`gain`: whether a variant is better than the base in anything that is paid for; `words`: in what, what it costs
    elsewhere, and what it does to quality."""
    gains, losses = [], []
    for one, other in zip(costs(found), costs(base), strict=True):
        ratio = one.value / other.value
        better = 1 / ratio if one.is_better_low else ratio
        if better > 1 + NOTICEABLE:
            gains.append(f"{one.name} x {ratio:.2f}")
        elif better < 1 - NOTICEABLE:
            losses.append(f"{one.name} x {ratio:.2f}")
    parts = [", ".join(gains) if gains else _no_gain(found)]
    if losses:
        parts.append(f"{'but ' if gains else ''}{', '.join(losses)}")
    return {"gain": bool(gains), "words": "; ".join([*parts, _quality(found["quality"])])}


def _no_gain(found: Mapping[str, Any]) -> str:
    if found["zeros"] <= MANY_ZEROS:
        return "none"
    return f"none: {found['zeros']:.0%} of the weights are zero, and are stored and multiplied like any other number"


def _quality(quality: Mapping[str, Any]) -> str:
    low, high = quality["perplexity_ratio_interval"]
    if low <= 1 <= high:
        return "these rows show no difference in perplexity"
    return f"perplexity x {quality['perplexity_ratio']:.2f} ({low:.2f} to {high:.2f})"


def markdown(models: Mapping[str, Mapping[str, Any]], base: str, where: str, machine: Mapping[str, str]) -> str:
    """The card. `models`: name -> measurement with its quality and, but for the base, its verdict."""
    names = ["model", "parameters (without embeddings)", "MB", "bits a weight", "zeros", "perplexity (95 %)"]
    names += ["task", "KL to the first", "same top token", "prefill tokens/s", "decode tokens/s", "token ms p50, p95"]
    names += ["peak MiB", "real gain?"]
    lines = [_line(names), _line(["---"] * len(names))]
    lines += [_line(_cells(name, found, name == base)) for name, found in models.items()]
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


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(name: str, found: Mapping[str, Any], is_base: bool) -> list[str]:
    quality = found["quality"]
    low, high = quality["perplexity_interval"]
    task = ", ".join(f"{key} {value:.3g}" for key, value in (found.get("task") or {}).items()) or "–"
    said = "–" if is_base else f"{'yes' if found['verdict']['gain'] else 'no'}: {found['verdict']['words']}"
    latency = [found["eager"].get(f"latency_p{share}_ms") for share in (50, 95)]
    return [
        name,
        f"{found['num_parameters']:,} ({found['num_non_embedding_parameters']:,})",
        f"{found['bytes'] / 1e6:.1f}",
        f"{found['bits_per_parameter']:.1f}",
        f"{found['zeros']:.1%}",
        f"{quality['perplexity']:.2f} ({low:.2f} to {high:.2f})",
        task,
        "–" if is_base else f"{quality['divergence']:.4f}",
        "–" if is_base else f"{quality['agreement']:.1%}",
        _both(found, "prefill_tokens_per_second"),
        _both(found, "decode_tokens_per_second"),
        ", ".join(f"{value:.1f}" for value in latency) if all(latency) else "–",
        f"{found['peak_memory_mib']:.0f}",
        said,
    ]


def _both(found: Mapping[str, Any], key: str) -> str:
    eager = found["eager"].get(key)
    if not eager:
        return "–"
    if "compiled" not in found:
        return f"{eager:.1f}"
    compiled = found["compiled"].get(key)
    return f"{eager:.1f} / {f'{compiled:.1f}' if compiled else 'failed'}"


def pareto(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The models that no other beats in bytes, speed and perplexity at once."""
    points = {
        name: (
            found["bytes"],
            best(found, "prefill_ms", lowest=True),
            _decode_ms(found),
            found["quality"]["perplexity"],
        )
        for name, found in models.items()
    }
    return [
        name
        for name, mine in points.items()
        if not any(other != mine and all(o <= m for o, m in zip(other, mine, strict=True)) for other in points.values())
    ]


def _decode_ms(found: Mapping[str, Any]) -> float:
    return 1000 / best(found, "decode_tokens_per_second") if found["eager"].get("decode_tokens_per_second") else 0.0


def plot(models: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Perplexity against bytes and against speed; what nothing beats in all of them is filled."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), dpi=120, sharey=True)
    front = pareto(models)
    for name, found in models.items():
        decode = found["eager"].get("decode_tokens_per_second")
        speed = best(found, "decode_tokens_per_second") if decode else 1000 / best(found, "prefill_ms", lowest=True)
        low, high = found["quality"]["perplexity_interval"]
        middle = found["quality"]["perplexity"]
        for axes, across in ((left, found["bytes"] / 1e6), (right, speed)):
            axes.errorbar(
                across, middle, yerr=[[max(0, middle - low)], [max(0, high - middle)]], fmt="o", capsize=2,
                color="C0", markerfacecolor="C0" if name in front else "white",
            )  # fmt: skip
            axes.annotate(name, (across, middle), textcoords="offset points", xytext=(5, 5), fontsize=8)
    middles = [found["quality"]["perplexity"] for found in models.values()]
    left.set(xlabel="MB on disk", ylabel="perplexity", yscale="log" if max(middles) > 3 * min(middles) else "linear")
    right.set(xlabel="decoded tokens a second" if _decode_ms(found) else "texts a second")
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    figure.tight_layout()
    aside = aside_of(file)
    figure.savefig(aside, format="png")
    aside.replace(file)
    pyplot.close(figure)
