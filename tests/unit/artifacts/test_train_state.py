"""What a run remembers of its evaluations."""

import json

import pytest

from scaleup.artifacts.train_state import TrainState


def after(losses, threshold=0.0):
    """The state after evaluations at steps 1, 2, ..., and which of them were the best so far."""
    state, best = TrainState(), []
    for state.step, loss in enumerate(losses, start=1):
        if state.note_evaluation(loss, threshold):
            best.append(state.step)
    return state, best


@pytest.mark.parametrize(
    ("losses", "threshold", "best", "without_gain"),
    [
        ([3.0], 0.0, [1], 0),
        ([3.0, 2.0, 1.0], 0.0, [1, 2, 3], 0),
        ([3.0, 3.0, 4.0], 0.0, [1], 2),
        ([3.0, 4.0, 2.0, 2.5], 0.0, [1, 3], 1),
        ([3.0, 2.95, 2.92, 2.8], 0.1, [1, 4], 0),
        ([3.0, 2.9], 0.1, [1], 1),
        ([0.0, 0.0], 0.0, [1], 1),
    ],
)
def test_the_best_evaluation(losses, threshold, best, without_gain):
    state, found = after(losses, threshold)
    assert found == best
    assert (state.best_step, state.best_metric) == (best[-1], losses[best[-1] - 1])
    assert state.evaluations_without_gain == without_gain


def test_a_state_survives_its_file(tmp_path):
    state, _ = after([3.0, 1.0, 2.0])
    state.num_tokens, state.schedule = 12, {"last_epoch": 3, "_last_lr": [0.1]}
    state.save(tmp_path / "state.json")
    assert TrainState.read(tmp_path / "state.json") == state
    assert json.loads((tmp_path / "state.json").read_text())["best_step"] == 2


def test_schedules_are_not_shared():
    TrainState().schedule["x"] = 1
    assert TrainState().schedule == {}
