"""What a run reports, also after it went on."""

import json

import pytest
import torch

from scaleup.train.metrics import MetricsLog, peak_memory_mib

HYPERPARAMETERS = {"train": {"max_steps": 3}, "seeds": [1, 2]}


def lines(run):
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def test_lines_and_tensorboard(runtime, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(runtime, run, "x", HYPERPARAMETERS, 0)
    log.log(1, loss=2.5, grad_norm=1.0)
    log.log(2, loss=2.0)
    log.close()
    assert lines(run) == [{"step": 1, "loss": 2.5, "grad_norm": 1.0}, {"step": 2, "loss": 2.0}]
    [folder] = {file.parent for file in run.path.joinpath("tensorboard").rglob("events.*") if file.parent.name == "x"}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.5), (2, 2.0)]


@pytest.mark.parametrize("torn", ["", '{"step": 5, "lo', '{"step": 2, "loss": 2.0}'])
def test_a_run_that_goes_on_has_one_line_a_step(runtime, run, torn):
    """What came after the checkpoint goes, and the half line that a killed process may have left."""
    whole = [{"step": step, "loss": float(step)} for step in (1, 2, 3, 4)]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in whole) + torn)
    log = MetricsLog(runtime, run, "x", HYPERPARAMETERS, 2)
    assert lines(run) == whole[:2]
    log.log(3, loss=9.0)
    log.close()
    assert lines(run) == [*whole[:2], {"step": 3, "loss": 9.0}]


def test_a_new_run_starts_with_no_lines(runtime, run):
    run.metrics_file.write_text('{"step": 1, "loss": 1.0}\n')
    MetricsLog(runtime, run, "x", HYPERPARAMETERS, 0).close()
    assert run.metrics_file.read_text() == ""


def test_peak_memory():
    """A process with torch in it holds between 50 MiB and the machine; it never goes down."""
    before = peak_memory_mib(torch.device("cpu"))
    assert 50 < before < 1e6
    held = torch.ones(64 * 2**20 // 4)
    assert peak_memory_mib(torch.device("cpu")) >= before and held.sum() > 0
