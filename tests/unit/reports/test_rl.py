"""What people read of a run of reinforcement learning: its summary, the table of responses, the plot of scores."""

import json
from pathlib import Path

from PIL import Image

from scaleup.artifacts.timeline import Span
from scaleup.artifacts.train_state import TrainState
from scaleup.reports.rl import plot_rewards, plot_timelines, rl_summary, sample_table

LINES = [
    {"step": 0, "eval/scores": 1.0, "eval/scores_std": 0.5, "eval/kl": 0.0},
    {"step": 1, "objective/scores": 1.5, "objective/kl": 0.25},
    {"step": 2, "objective/scores": 2.0, "objective/kl": 0.75},
    {"step": 2, "eval/scores": 3.0, "eval/scores_std": 0.25, "eval/kl": 0.5},
]


def test_the_summary_has_the_last_rollout_and_held_out_prompts_before_and_after() -> None:
    metrics = rl_summary(LINES, TrainState(step=2, num_tokens=42))
    assert (metrics["scores"], metrics["kl"], metrics["num_tokens"]) == (2.0, 0.75, 42)
    assert (metrics["held_out_before"], metrics["held_out_after"], metrics["held_out_kl"]) == (1.0, 3.0, 0.5)
    assert "held_out_after" not in rl_summary(LINES[1:3], TrainState(step=2))


def test_the_summary_is_of_the_best_weights_where_they_are_the_result() -> None:
    lines = [*LINES, {"step": 4, "eval/scores": 2.0, "eval/scores_std": 0.5, "eval/kl": 0.75, "eval/rougeL": 30.0}]
    last, best = (rl_summary(lines, TrainState(step=4), step) for step in (None, 2))
    assert (last["held_out_after"], last["held_out_rougeL"]) == (2.0, 30.0) and "best_step" not in last
    assert (best["held_out_after"], best["best_step"]) == (3.0, 2) and "held_out_rougeL" not in best


def test_the_names_of_grpo_are_read_too() -> None:
    lines = [{"step": 1, "reward": 1.5, "kl_response": 0.25}, {"step": 2, "reward": 2.5}]
    metrics = rl_summary(lines[:1], TrainState(step=1))
    assert (metrics["scores"], metrics["kl"]) == (1.5, 0.25)
    metrics = rl_summary(lines, TrainState(step=2))
    assert (metrics["scores"], metrics["kl"]) == (2.5, 0.0), "there is no reference"


def test_the_table_compares_the_first_and_the_last_evaluation(tmp_path: Path) -> None:
    assert sample_table(tmp_path).startswith("No held-out prompts")
    for step, response in ((0, "no"), (1, "?"), (2, "a|b\nc")):
        rows = [{"prompt": "Say", "response": response, "score": float(step)}]
        (tmp_path / f"rollout-{step:06d}.json").write_text(json.dumps(rows))
    assert sample_table(tmp_path).splitlines()[2] == r"| Say | no | 0.000 | a\|b\nc | 2.000 |"
    assert sample_table(tmp_path, 1).splitlines()[2] == "| Say | no | 0.000 | ? | 1.000 |"


def test_the_timelines_are_a_picture(tmp_path: Path) -> None:
    drawn = [Span("generation", 10.0 * n, 10.0 * n + 4) for n in range(6)]
    trained = [Span("training", 10.0 * n + 5, 10.0 * n + 9) for n in range(6)]
    scored = [Span("scoring", 10.0 * n + 2, 10.0 * n + 5) for n in range(6)]
    plot_timelines({"policy": [*drawn, *trained], "reward-liked": scored}, tmp_path / "timeline.png", "run")
    with Image.open(tmp_path / "timeline.png") as image:
        assert image.width == 1200
    plot_timelines({}, tmp_path / "none.png", "run")
    assert not (tmp_path / "none.png").exists()


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot_rewards(LINES, tmp_path / "reward.png", "run")
    with Image.open(tmp_path / "reward.png") as image:
        assert image.size == (1200, 480)
