"""Optimizers and schedules by their config names."""

import math
from typing import get_args

import pytest
import torch
import transformers

from scaleup.config.schema import SCHEDULES, TrainConfig
from scaleup.train.optim import build_optimizer, build_schedule
from tests.unit.data import tiny


def rates(schedule_of, steps=20, **train):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    config = TrainConfig(max_steps=steps, learning_rate=0.5, **train)
    optimizer = torch.optim.SGD([weight], lr=config.learning_rate)
    schedule = schedule_of(optimizer, config)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def ours(optimizer, config):
    return build_schedule(optimizer, config, config.max_steps)


@pytest.mark.parametrize("name", [*tiny.CAUSAL, "bart"])
def test_weight_decay_is_for_matrices(name):
    """As Transformers' Trainer has it: no decay of biases and of normalisation weights."""
    model = tiny.model(name)
    decayed, plain = build_optimizer(model, TrainConfig(max_steps=1, weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    trainers = transformers.Trainer.get_decay_parameter_names(None, model)
    assert {id(parameter) for parameter in decayed["params"]} == {id(model.get_parameter(key)) for key in trainers}
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters())), "each weight is in one group"
    assert plain["params"]


def test_frozen_weights_are_left_out():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = build_optimizer(model, TrainConfig(max_steps=1)).param_groups
    assert [[id(p) for p in group["params"]] for group in groups] == [[id(model[1].weight)], [id(model[1].bias)]]
    model[1].bias = None
    assert len(build_optimizer(model, TrainConfig(max_steps=1)).param_groups) == 1, "no empty group"


def test_the_optimizers_settings():
    model = torch.nn.Linear(2, 2)
    settings = {"learning_rate": 0.3, "adam_beta1": 0.5, "adam_beta2": 0.6, "adam_epsilon": 0.7, "momentum": 0.8}
    adamw = build_optimizer(model, TrainConfig(max_steps=1, **settings))
    assert type(adamw) is torch.optim.AdamW
    assert [(g["lr"], g["betas"], g["eps"]) for g in adamw.param_groups] == [(0.3, (0.5, 0.6), 0.7)] * 2
    sgd = build_optimizer(model, TrainConfig(max_steps=1, optimizer="sgd", **settings))
    assert type(sgd) is torch.optim.SGD
    assert [(g["lr"], g["momentum"]) for g in sgd.param_groups] == [(0.3, 0.8)] * 2


@pytest.mark.parametrize("name", get_args(SCHEDULES))
def test_schedules_are_those_of_transformers(name):
    functions = {
        "linear": lambda o: transformers.get_linear_schedule_with_warmup(o, 4, 20),
        "cosine": lambda o: transformers.get_cosine_schedule_with_warmup(o, 4, 20),
        "cosine_with_restarts": lambda o: transformers.get_cosine_with_hard_restarts_schedule_with_warmup(o, 4, 20),
        "polynomial": lambda o: transformers.get_polynomial_decay_schedule_with_warmup(o, 4, 20),
        "constant": lambda o: transformers.get_constant_schedule(o),
        "constant_with_warmup": lambda o: transformers.get_constant_schedule_with_warmup(o, 4),
        "inverse_sqrt": lambda o: transformers.get_inverse_sqrt_schedule(o, 4),
    }
    expected = rates(lambda optimizer, _: functions[name](optimizer))
    assert rates(ours, lr_scheduler_type=name, warmup_steps=4) == expected


def test_the_linear_schedule_in_numbers():
    expected = [0.5 * step / 4 for step in range(4)] + [0.5 * (20 - step) / 16 for step in range(4, 20)]
    assert rates(ours, lr_scheduler_type="linear", warmup_steps=4) == pytest.approx(expected)
    assert rates(ours, lr_scheduler_type="linear")[0] == 0.5, "by default without warm-up"


@pytest.mark.parametrize(("ratio", "steps"), [(0.0, 20), (0.1, 20), (0.12, 20), (0.001, 20), (0.5, 7)])
def test_a_warmup_ratio_is_rounded_up(ratio, steps):
    """As Transformers does: any ratio above zero is at least one step."""
    by_ratio = rates(ours, steps, lr_scheduler_type="linear", warmup_ratio=ratio)
    assert by_ratio == rates(ours, steps, lr_scheduler_type="linear", warmup_steps=math.ceil(ratio * steps))
    assert (by_ratio[0] == 0.0) == (ratio > 0)
    trainer = transformers.TrainingArguments("x", warmup_steps=ratio, report_to="none", use_cpu=True)
    assert trainer.get_warmup_steps(steps) == math.ceil(ratio * steps)
