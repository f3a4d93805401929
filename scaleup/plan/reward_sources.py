"""This module plans where rewards come from: what each source of scores needs, and what it does not read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from scaleup.config.reward_source import RewardSource, WeightedReward
from scaleup.config.run import RunConfig
from scaleup.errors import Problem
from scaleup.plan.groups import device_of
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import model_path_problems
from scaleup.plan.reward_functions import FORMS, function_problems, pattern_problems
from scaleup.plan.rules import single_problems
from scaleup.plan.scorers import template_problems

OF_A_MODEL = ("label", "score", "template", "max_length", "normalize", "batch_size", "quantization", "mixed_precision")
OF_A_GROUP = ("parallel", "own_nodes", "max_restarts", "bridge_port")
OF_OTHERS = ("timeout_seconds", "reconnect_seconds")
"""Lists the keys of what is requested over a connection."""

MEANT = {
    "group": ("model", *OF_A_MODEL, *OF_A_GROUP, *OF_OTHERS),
    "colocated": ("model", *OF_A_MODEL),
    "http": ("url", "format", "judge", *OF_OTHERS),
    "function": ("function", "arguments", "retries", "timeout_seconds"),
}
"""Maps each placement -> the keys that it reads."""
NEEDED = {"group": "model", "colocated": "model", "http": "url", "function": "function"}


def reward_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    """Yields problems of every source of scores, and of several beside each other."""
    sources = config.reward_sources
    for reward in sources:
        yield from _source_problems(reward, config, machine)
    yield from _device_problems(config, machine)
    ports: dict[int, str] = {}
    for reward in config.reward_groups:
        port, where = reward.source.bridge_port, f"{reward.key}.bridge_port"
        if port is not None and (other := ports.setdefault(port, where)) != where:
            yield Problem(where, f"{port} is {other} too", "give each group a port of its own, or leave them out")
    names = [reward.name for reward in sources]
    for place, reward in enumerate(sources):
        if reward.name in names[:place]:
            yield Problem(f"{reward.key}.name", f"two rewards are called {reward.name}", "give each its own name")
        if reward.source.placement == "group" and "-rank" in reward.name:
            what = f"{reward.name!r} holds -rank, which comes after the group's name where its processes are named"
            yield Problem(f"{reward.key}.name", what, "choose another name")
        if reward.weight == 0:
            yield Problem(f"{reward.key}.weight", "is 0, so its scores count for nothing", "leave the reward out")


def _source_problems(reward: WeightedReward, config: RunConfig, machine: Machine) -> Iterator[Problem]:
    """Yields keys of a source that its placement needs and lacks, or does not read."""
    source, key = reward.source, reward.key
    needed = NEEDED[source.placement]
    if getattr(source, needed) is None:
        remedy = {"model": "name a finished reward run or a sequence classifier", "url": "give the service's address"}
        what = f"is needed by {key}.placement: {source.placement}"
        yield Problem(f"{key}.{needed}", what, remedy.get(needed, FORMS))
    for name, field in RewardSource.model_fields.items():
        is_meant = name == "placement" or name in MEANT[source.placement]
        if not is_meant and getattr(source, name) != field.get_default(call_default_factory=True):
            yield Problem(f"{key}.{name}", f"has no meaning for placement {source.placement}", "leave it out")
    if source.model is not None and needed == "model":
        yield from model_path_problems(source.model, f"{key}.model", not machine.is_described)
    if source.url is not None and needed == "url":
        yield from _url_problems(source.url, f"{key}.url")
    if source.placement == "http":
        yield from _judge_problems(source, key, machine)
    if source.function is not None and needed == "function":
        yield from function_problems(source, key)
    if source.placement == "group":
        yield from _group_problems(reward)
    device = device_of(source.parallel if source.placement == "group" else config.parallel, machine)
    if source.mixed_precision == "fp16" and device == "cpu" and needed == "model":
        yield Problem(f"{key}.mixed_precision", "fp16 needs a GPU, and rewards come from the CPU", 'use bf16, or "no"')


def _group_problems(reward: WeightedReward) -> Iterator[Problem]:
    """Yields problems of a source's `parallel`."""
    source, parallel = reward.source, reward.source.parallel
    where = f"{reward.key}.parallel"
    if parallel.progress_timeout_seconds is not None:
        what = f"a reward group that gives no answers is started again after {reward.key}.timeout_seconds"
        yield Problem(f"{where}.progress_timeout_seconds", what, "leave it out")
    if parallel.strategy in ("auto", "zero1", "zero2"):
        what = f"{parallel.strategy} is for training, and a reward group only scores"
        yield Problem(f"{where}.strategy", what, "use ddp, or zero3 or fsdp2 for a model that must be sharded")
    yield from single_problems(parallel, where)
    if source.quantization is not None and parallel.strategy in ("zero3", "fsdp2"):
        what = f"{parallel.strategy} shards weights, and those of a quantized reward model stay whole"
        yield Problem(f"{where}.strategy", what, f"use ddp, or leave {reward.key}.quantization out")
    if parallel.gather_for_generation != "auto":
        yield Problem(f"{where}.gather_for_generation", "a reward group generates nothing", "leave it out")
    if parallel.offload_optimizer:
        yield Problem(f"{where}.offload_optimizer", "a reward group has no optimizer", "leave it out")
    if parallel.offload_parameters and parallel.strategy != "zero3":
        yield Problem(f"{where}.offload_parameters", f"{parallel.strategy} cannot", "use zero3")
    if parallel.num_nodes > 1:
        yield Problem(f"{where}.num_nodes", "a reward group is on one node", "use 1")
    if parallel.max_restarts:
        remedy = f"use {reward.key}.max_restarts"
        yield Problem(f"{where}.max_restarts", "a reward group is started again by itself", remedy)


def _device_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    """Yields the first reward group for which this machine has no GPUs beside the groups before it."""
    if machine.is_described:
        return
    on_gpus = device_of(config.parallel, machine) == "cuda"
    used = {"the policy": config.parallel.num_processes // config.parallel.num_nodes} if on_gpus else {}
    for reward in config.reward_groups:
        parallel, where = reward.source.parallel, f"{reward.key}.parallel"
        if reward.source.own_nodes or device_of(parallel, machine) != "cuda":
            continue
        used["the reward group" if len(config.reward_groups) == 1 else f"group {reward.group}"] = parallel.num_processes
        if (needed := sum(used.values())) > machine.num_gpus:
            shown = " and ".join(f"{count} of {name}" for name, count in used.items())
            shown = shown if len(used) > 1 else f"{needed} processes"
            what = f"{shown} need {needed} GPUs, and this machine has {machine.num_gpus}"
            remedy = f"use fewer processes, {where}.device: cpu, or {reward.key}.placement: colocated"
            yield Problem(f"{where}.num_processes", what, remedy)
            return


def _judge_problems(source: RewardSource, key: str, machine: Machine) -> Iterator[Problem]:
    """Yields problems of a judge: of its key only whether it is where a run on this machine would look for it."""
    where, judge = f"{key}.judge", source.judge
    if judge is None:
        if source.format == "openai":
            yield Problem(where, f"is needed by {key}.format: openai", "give at least the model that is asked")
        return
    if source.format == "scores":
        yield Problem(where, "has no meaning for format scores", f"use {key}.format: openai, or leave it out")
    yield from template_problems(judge.template, f"{where}.template")
    yield from pattern_problems(judge.pattern, f"{where}.pattern")
    if judge.api_key_env is not None and judge.api_key_file is not None:
        yield Problem(f"{where}.api_key_file", "is a second place of the key, beside api_key_env", "leave one out")
    if machine.is_described:
        return
    if judge.api_key_env is not None and not os.environ.get(judge.api_key_env):
        yield Problem(f"{where}.api_key_env", f"{judge.api_key_env} is not set here", "export it before the run")
    if judge.api_key_file is not None and not Path(judge.api_key_file).is_file():
        yield Problem(f"{where}.api_key_file", f"there is no file {judge.api_key_file}", "name the file of the key")


def _url_problems(url: str, where: str) -> Iterator[Problem]:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or any(letter.isspace() for letter in url):
        yield Problem(where, f"{url!r} is no address of a service", "write http://HOST:PORT/PATH")
