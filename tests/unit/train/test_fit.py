"""The loop's decisions: when to evaluate, to save, to stop early, and what to leave behind."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scaleup.artifacts.checkpoints import whole_checkpoints
from scaleup.artifacts.metrics_log import logged_lines
from scaleup.config.stages.sft import SFTConfig
from scaleup.data.collate import causal_collator
from scaleup.data.loader import Split, TrainLoader
from scaleup.data.sources import MapSource
from scaleup.data.tokenization import Tokens
from scaleup.errors import ScaleupError
from scaleup.reports.training import retained
from scaleup.train.fit import Feed, Stopped, Training, fit
from scaleup.train.optim import build_optimizer, build_schedule

ROWS = [Tokens(np.asarray([1, 2], np.int32), np.asarray([-100, 2], np.int32))]


class Counter(torch.nn.Module):
    """Its weight is the number of steps done: the gradient is -1 and the learning rate 1."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, 1))

    @property
    def steps(self):
        return round(self.weight.item())


def job(runtime, run, validation_losses=(), num_steps=10, bad_step=None, signal_at=None, **train):
    """A run whose nth evaluation gives the nth of `validation_losses`."""
    settings = {"learning_rate": 1.0, "lr_scheduler_type": "constant", "optimizer": "sgd", "max_grad_norm": 0.0}
    config = SFTConfig.model_validate(
        {
            "stage": "sft",
            "name": "x",
            "model": {"path": "builtin:tiny-llama"},
            "data": {"train": ["a.jsonl"], "text": "{t}"},
            "train": {"max_steps": num_steps, **settings, **train},
        }
    )
    model = Counter()

    def objective(model, batch):
        if not model.training:
            return torch.tensor(validation_losses[model.steps // config.train.eval_steps - 1] * batch.num_labels)
        runtime.stop.requested = model.steps + 1 == signal_at
        loss = -model.weight.sum() * batch.num_labels
        return loss * math.nan if model.steps + 1 == bad_step else loss

    optimizer = build_optimizer(model, config.train)
    schedule = build_schedule(optimizer, config.train, num_steps)
    model, optimizer = runtime.prepare(model, optimizer)
    collate = causal_collator(0)
    loader = TrainLoader([MapSource(ROWS, [0], False)], [1.0], collate, Split(1, 1, 0, 1), None)
    validation = (lambda: [collate(ROWS)]) if validation_losses else None
    return Training(config, runtime, run, model, optimizer, schedule, Feed(loader, validation), num_steps, objective)


def again(runtime):
    """A new process would have no model yet."""
    runtime.accelerator.free_memory()
    return runtime


def saved(run):
    return [checkpoint.step for checkpoint in whole_checkpoints(run.checkpoints)]


def logged(run, key):
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def test_a_plain_run(runtime, run):
    work = job(runtime, run, num_steps=5, logging_steps=2)
    state = fit(work)
    assert (state.step, work.model.steps, state.num_tokens) == (5, 5, 10)
    assert logged(run, "loss") == {2: -1.0, 4: -3.0, 5: -4.0}, "every second step and the last"
    assert saved(run) == [5]
    assert set(logged(run, "grad_norm").values()) == {1.0}
    assert all(value > 0 for key in ("tokens_per_second", "memory_mib") for value in logged(run, key).values())


def test_evaluations_and_checkpoints_come_when_due_and_at_the_end(runtime, run):
    work = job(runtime, run, [5.0, 4.0, 3.0, 2.0], num_steps=7, eval_steps=2, save_steps=3, save_total_limit=9)
    assert fit(work).best_step == 6
    assert logged(run, "eval_loss").keys() == {2, 4, 6, 7}
    assert saved(run) == [3, 6, 7]


@pytest.mark.parametrize(("minutes", "expected"), [(1, [3, 5, 7]), (0.5, [2, 4, 5, 7]), (60, [5, 7])])
def test_checkpoints_by_the_clock(runtime, run, monkeypatch, minutes, expected):
    """A step takes half a minute, of which the clock hears after it. What save_steps asks for, at 5, counts too."""
    work = job(runtime, run, num_steps=7, save_minutes=minutes, save_steps=5, save_total_limit=9)
    clock = SimpleNamespace(monotonic=lambda: 1000.0 + 30 * work.model.steps)
    monkeypatch.setattr("scaleup.train.checkpoint.time", clock)
    fit(work)
    assert saved(run) == expected


def test_old_tasks_are_measured_before_with_each_evaluation_and_after(runtime, run):
    """Their loss is the number of steps done. Without validation rows, the loop evaluates nothing else."""

    def learns_and_forgets(model, batch):
        return model.weight.sum() * batch.num_labels * (-1 if model.training else 1)

    def work():
        made = job(runtime, run, num_steps=5, eval_steps=2, save_steps=2)
        retained = {"old": lambda: [causal_collator(0)(ROWS)]}
        return replace(made, feed=replace(made.feed, retained=retained), objective=learns_and_forgets)

    fit(work())
    losses = {0: 0.0, 2: 2.0, 4: 4.0, 5: 5.0}
    assert logged(run, "eval/retain/old/loss") == losses
    assert logged(run, "eval/retain/old/perplexity") == {step: math.exp(loss) for step, loss in losses.items()}
    assert not logged(run, "eval_loss")
    shutil.rmtree(whole_checkpoints(run.checkpoints)[-1].path)
    again(runtime)
    fit(work())
    assert logged(run, "eval/retain/old/loss") == losses, "what a run began with is not measured again"
    assert retained(logged_lines(run.metrics_file), 5) == {
        "retain/old/loss_before": 0.0,
        "retain/old/loss_after": 5.0,
    }
    assert retained(logged_lines(run.metrics_file), 2)["retain/old/loss_after"] == 2.0, "of the best step"


PATIENCE = {"eval_steps": 2, "early_stopping_patience": 2, "save_total_limit": 9}


def test_early_stopping(runtime, run):
    """The best is at step 4; steps 6 and 8 bring nothing: the run is over, and saved."""
    work = job(runtime, run, [3.0, 2.0, 2.5, 2.0], num_steps=20, **PATIENCE)
    state = fit(work)
    assert (state.step, state.best_step, state.best_metric, state.evaluations_without_gain) == (8, 4, 2.0, 2)
    assert work.model.steps == 8 and saved(run) == [8]

    work = job(again(runtime), run, [], num_steps=20, **PATIENCE)
    assert fit(work).step == 8, "a run that is over stays over when it is started again"
    assert work.model.steps == 8


@pytest.mark.parametrize(("threshold", "last"), [(0.0, 10), (0.3, 6)])
def test_the_threshold_of_a_gain(runtime, run, threshold, last):
    losses = [3.0, 2.9, 2.8, 2.7, 2.6]
    work = job(runtime, run, losses, num_steps=10, early_stopping_threshold=threshold, **PATIENCE)
    assert fit(work).step == last


def test_without_patience_a_run_goes_to_its_end(runtime, run):
    work = job(runtime, run, [1.0, 2.0, 3.0, 4.0, 5.0], num_steps=10, eval_steps=2)
    state = fit(work)
    assert (state.step, state.evaluations_without_gain) == (10, 4)


@pytest.mark.parametrize(("load_best", "steps"), [(True, 4), (False, 8)])
def test_the_best_model_at_the_end(runtime, run, load_best, steps):
    keys = {**PATIENCE, "load_best_model_at_end": load_best, "save_total_limit": 1}
    work = job(runtime, run, [3.0, 2.0, 2.5, 2.1], num_steps=20, **keys)
    state = fit(work)
    assert work.model.steps == steps
    assert (state.step, state.best_step) == (8, 4)
    assert saved(run) == ([4, 8] if load_best else [8]), "the best stays, whatever the limit"


def test_a_bad_loss_names_the_step_and_what_is_saved(runtime, run):
    work = job(runtime, run, num_steps=10, bad_step=6, save_steps=2)
    with pytest.raises(ScaleupError, match=r"training step 6: the loss is nan; the last good checkpoint is step 4"):
        fit(work)
    assert work.model.steps == 5 and saved(run) == [2, 4]


def test_a_bad_first_loss(runtime, run):
    with pytest.raises(ScaleupError, match=r"training step 1: .*no checkpoint was saved yet"):
        fit(job(runtime, run, bad_step=1))


def test_a_signal_saves_and_the_run_goes_on_later(runtime, run):
    with pytest.raises(Stopped) as stopped:
        fit(job(runtime, run, signal_at=3, num_steps=6))
    assert stopped.value.step == 3 and saved(run) == [3]
    assert json.loads(run.resumable_file.read_text()) == {"step": 3, "num_steps": 6}

    work = job(again(runtime), run, num_steps=6)
    assert fit(work).step == 6
    assert work.model.steps == 6
    assert logged(run, "loss") == {step: 1.0 - step for step in range(1, 7)}


def test_a_signal_in_the_last_step_changes_nothing(runtime, run):
    assert fit(job(runtime, run, signal_at=4, num_steps=4)).step == 4
    assert not run.resumable_file.exists()


def test_a_run_that_is_told_to_stop_at_a_step_goes_on_as_if_it_had_not(runtime, run):
    settings = {"num_steps": 7, "eval_steps": 2}
    losses = [5.0, 4.0, 3.0, 2.0]
    for stop in (3, 3, 4):  # the second start has nothing to do
        with pytest.raises(Stopped, match=f"stopped after step {stop}"):
            fit(job(again(runtime), run, losses, stop_at_step=stop, **settings))
        assert saved(run)[-1] == stop
        assert json.loads(run.resumable_file.read_text()) == {"step": stop, "num_steps": 7}
    work = job(again(runtime), run, losses, stop_at_step=7, **settings)
    assert fit(work).step == work.model.steps == 7, "a stop at the end is none"
    assert logged(run, "loss") == {step: 1.0 - step for step in range(1, 8)}
    assert logged(run, "eval_loss") == {2: 5.0, 4: 4.0, 6: 3.0, 7: 3.0}
