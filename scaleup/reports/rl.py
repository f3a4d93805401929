"""Reports of reinforcement learning: metrics and samples go in; a summary, a table of responses and a plot of scores
come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scaleup.artifacts.files import read_json
from scaleup.artifacts.timeline import Span
from scaleup.artifacts.train_state import TrainState
from scaleup.reports.plots import figure

OF_REWARDS = ("scores", "scores_std", "kl", "length_mean")
"""Names what each evaluation of held-out prompts tells."""


def rl_summary(lines: list[dict[str, Any]], state: TrainState, last: int | None = None) -> dict[str, Any]:
    """Returns the metrics of a manifest: those of the last rollout, and of held-out prompts before training and after
    `last` rollouts, whose weights are the result (None: all). KL is in nats a response."""
    rollouts = _rollouts(lines)
    held_out = [line for line in lines if "eval/scores" in line]
    score, kl = rollouts[-1] if rollouts else (None, None)
    metrics: dict[str, Any] = {
        "scores": score,
        "kl": kl,
        "num_tokens": state.num_tokens,
    }
    if held_out:
        before, after = held_out[0], next((line for line in held_out if line["step"] == last), held_out[-1])
        metrics |= {
            "held_out_before": before["eval/scores"],
            "held_out_before_std": before["eval/scores_std"],
            "held_out_after": after["eval/scores"],
            "held_out_after_std": after["eval/scores_std"],
            "held_out_kl": after["eval/kl"],
        }
        figures = {key.removeprefix("eval/"): value for key, value in after.items() if key.startswith("eval/")}
        metrics |= {f"held_out_{name}": value for name, value in figures.items() if name not in OF_REWARDS}
    if last is not None:
        metrics["best_step"] = last
    return metrics


def sample_table(folder: Path, last: int | None = None) -> str:
    """Returns a Markdown table of the held-out responses of the first evaluation in `folder`, and of that after `last`
    rollouts (None: the last one)."""
    pairs = sample_pairs(folder, last)
    if not pairs:
        return "No held-out prompts: data.test was not given.\n"
    rows = [
        f"| {_cell(old['prompt'])} | {_cell(old['response'])} | {old['score']:.3f} "
        f"| {_cell(new['response'])} | {new['score']:.3f} |"
        for old, new in pairs
    ]
    return "\n".join(["| prompt | before | score | after | score |", "|---|---|---|---|---|", *rows]) + "\n"


def sample_pairs(folder: Path, last: int | None = None) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Returns the held-out samples (`prompt`, `response`, `score`) of the first evaluation in `folder`, each with the
    same prompt's after `last` rollouts (None, and where there is none after these: of the last evaluation); none where
    nothing was held out."""
    files = sorted(folder.glob("rollout-*.json"))
    if not files:
        return []
    after = next((file for file in files if file.stem == f"rollout-{last or 0:06d}" and last is not None), files[-1])
    return list(zip(read_json(files[0]), read_json(after), strict=True))


def _cell(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("|", "\\|")


def _rollouts(lines: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Returns the mean score and the KL of each rollout that was logged, whichever of TRL's trainers its metrics are
    named after; KL 0 where there is no reference."""
    ppo = [(line["objective/scores"], line["objective/kl"]) for line in lines if "objective/scores" in line]
    return ppo or [(line["reward"], line.get("kl_response", 0.0)) for line in lines if "reward" in line]


def plot_rewards(lines: list[dict[str, Any]], file: Path, title: str) -> None:
    """Draws mean scores by rollout, and against the KL to the reference, into a PNG file."""
    steps = [line["step"] for line in lines if "objective/scores" in line or "reward" in line]
    rollouts = _rollouts(lines)
    held_out = [line for line in lines if "eval/scores" in line]
    with figure(file, 2, figsize=(10, 4)) as (drawn, (left, right)):
        for axes, places, other, label in (
            (left, steps, "step", "rollout"),
            (right, [kl for _, kl in rollouts], "eval/kl", "KL to the reference (nats a response)"),
        ):
            axes.plot(places, [score for score, _ in rollouts], ".-", label="rollouts")
            scores = [line["eval/scores"] for line in held_out]
            axes.plot([line[other] for line in held_out], scores, "o", label="held out")
            axes.set(xlabel=label, ylabel="mean score")
            axes.grid(alpha=0.3)
            axes.legend()
        drawn.suptitle(title)


SHOWN_ROLLOUTS = 4
IS_WAITING = "waiting for scores"


def plot_timelines(timelines: dict[str, list[Span]], file: Path, title: str) -> None:
    """Draws what each group did in the last rollouts, a bar a group, into a PNG file: where a bar is empty it waited,
    or did what is not noted. Draws nothing where nothing was noted."""
    count, shown = last_rollouts(timelines)
    if not count:
        return
    begin = min(span.start for spans in shown.values() for span in spans)
    kinds = dict.fromkeys(span.what for spans in shown.values() for span in spans if span.what != IS_WAITING)
    with figure(file, figsize=(10, 1.2 + 0.5 * len(shown))) as (_, axes):
        for number, kind in enumerate(kinds):
            for row, spans in enumerate(shown.values()):
                bars = [(span.start - begin, span.end - span.start) for span in spans if span.what == kind]
                axes.broken_barh(bars, (row - 0.4, 0.8), color=f"C{number}")
            axes.plot([], [], color=f"C{number}", linewidth=6, label=kind)
        axes.set_yticks(range(len(shown)), list(shown))
        axes.invert_yaxis()
        axes.set(xlabel="seconds", title=f"{title}: the last {count} rollouts")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def last_rollouts(timelines: dict[str, list[Span]]) -> tuple[int, dict[str, list[Span]]]:
    """Returns what each group did in the last rollouts, at most SHOWN_ROLLOUTS, and how many these are; 0 where nothing
    was learned from."""
    trained = [span for span in timelines.get("policy", []) if span.what == "training"][-SHOWN_ROLLOUTS - 1 :]
    first = trained[0].end if len(trained) > SHOWN_ROLLOUTS else 0.0
    shown = {name: [span for span in spans if span.start >= first] for name, spans in timelines.items()}
    return min(len(trained), SHOWN_ROLLOUTS), shown
