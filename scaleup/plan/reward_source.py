"""Where PPO's rewards come from, and what a config says of it that cannot be."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from scaleup.config.mistakes import suggestion
from scaleup.config.rl import RewardSource
from scaleup.config.schema import RunConfig
from scaleup.config.stages import PPOConfig
from scaleup.errors import Problem
from scaleup.plan.groups import device_of, has_reward_group
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import model_path_problems

OF_A_MODEL = ("label", "score", "template", "max_length", "normalize", "batch_size", "quantization", "mixed_precision")
OF_A_GROUP = ("parallel", "own_nodes", "max_restarts", "bridge_port")
OF_OTHERS = ("timeout_seconds", "reconnect_seconds")
"""Of what is asked over a connection."""

MEANT = {
    "group": ("model", *OF_A_MODEL, *OF_A_GROUP, *OF_OTHERS),
    "colocated": ("model", *OF_A_MODEL),
    "http": ("url", *OF_OTHERS),
    "function": ("function",),
}
"""Keys that a placement reads."""
NEEDED = {"group": "model", "colocated": "model", "http": "url", "function": "function"}


def reward_source_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    if not isinstance(config, PPOConfig):
        return
    reward = config.reward
    needed = NEEDED[reward.placement]
    if getattr(reward, needed) is None:
        remedy = {"model": "name a finished reward run or a sequence classifier", "url": "give the service's address"}
        what = f"is needed by reward.placement: {reward.placement}"
        yield Problem(f"reward.{needed}", what, remedy.get(needed, "write FILE.py:NAME or MODULE:NAME"))
    for key, field in RewardSource.model_fields.items():
        is_meant = key == "placement" or key in MEANT[reward.placement]
        if not is_meant and getattr(reward, key) != field.get_default(call_default_factory=True):
            yield Problem(f"reward.{key}", f"has no meaning for placement {reward.placement}", "leave it out")
    if reward.model is not None and needed == "model":
        yield from model_path_problems(reward.model, "reward.model", not machine.is_described)
    if reward.url is not None and needed == "url":
        yield from _url_problems(reward.url)
    if reward.function is not None and needed == "function":
        yield from _function_problems(reward.function)
    if has_reward_group(config):
        yield from _group_problems(config, machine)
    device = device_of(reward.parallel if has_reward_group(config) else config.parallel, machine)
    if reward.mixed_precision == "fp16" and device == "cpu" and needed == "model":
        yield Problem("reward.mixed_precision", "fp16 needs a GPU, and rewards come from the CPU", 'use bf16, or "no"')


def _group_problems(config: PPOConfig, machine: Machine) -> Iterator[Problem]:
    """Of `reward.parallel`."""
    reward, parallel = config.reward, config.reward.parallel
    where, count = "reward.parallel", parallel.num_processes
    if parallel.strategy in ("auto", "zero1", "zero2"):
        what = f"{parallel.strategy} is for training, and a reward group only scores"
        yield Problem(f"{where}.strategy", what, "use ddp, or zero3 or fsdp2 for a model that must be sharded")
    if parallel.strategy == "single" and count > 1:
        what = f"'single' is one process, and num_processes is {count}"
        yield Problem(f"{where}.strategy", what, "use ddp")
    if reward.quantization is not None and parallel.strategy in ("zero3", "fsdp2"):
        what = f"{parallel.strategy} shards weights, and those of a quantized reward model stay whole"
        yield Problem(f"{where}.strategy", what, "use ddp, or leave reward.quantization out")
    if parallel.offload_optimizer:
        yield Problem(f"{where}.offload_optimizer", "a reward group has no optimizer", "leave it out")
    if parallel.offload_parameters and parallel.strategy != "zero3":
        yield Problem(f"{where}.offload_parameters", f"{parallel.strategy} cannot", "use zero3")
    if parallel.num_nodes > 1:
        yield Problem(f"{where}.num_nodes", "a reward group is on one node", "use 1")
    if parallel.max_restarts:
        yield Problem(f"{where}.max_restarts", "a reward group is started again by itself", "use reward.max_restarts")
    if device_of(parallel, machine) == "cuda" and not machine.is_described and not reward.own_nodes:
        has_others = device_of(config.parallel, machine) == "cuda"
        beside = config.parallel.num_processes // config.parallel.num_nodes if has_others else 0
        if beside + count > machine.num_gpus:
            shown = f"{beside} of the policy and {count} of the reward group" if beside else f"{count} processes"
            what = f"{shown} need {beside + count} GPUs, and this machine has {machine.num_gpus}"
            remedy = "use fewer processes, reward.parallel.device: cpu, or reward.placement: colocated"
            yield Problem(f"{where}.num_processes", what, remedy)


def _url_problems(url: str) -> Iterator[Problem]:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or any(letter.isspace() for letter in url):
        yield Problem("reward.url", f"{url!r} is no address of a service", "write http://HOST:PORT/PATH")


def _function_problems(function: str) -> Iterator[Problem]:
    """A file is read, not run: what it makes when it runs is the worker's to find."""
    place, _, name = function.rpartition(":")
    if not place or not name.isidentifier():
        yield Problem("reward.function", f"{function!r} names no function", "write FILE.py:NAME or MODULE:NAME")
        return
    if place.endswith(".py"):
        yield from _file_problems(Path(place), name)
        return
    try:
        is_found = importlib.util.find_spec(place.partition(".")[0]) is not None
    except (ValueError, ImportError):
        is_found = False
    if not is_found:
        yield Problem("reward.function", f"there is no module {place}", "install it, or name a FILE.py")


def _file_problems(file: Path, name: str) -> Iterator[Problem]:
    if not file.is_file():
        yield Problem("reward.function", f"there is no file {file}", "write FILE.py:NAME, from this folder")
        return
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (OSError, SyntaxError, ValueError) as error:
        yield Problem("reward.function", f"{file} cannot be read as Python: {error}", "mend it")
        return
    nodes = list(ast.walk(tree))
    known = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    others = {node.asname or node.name for node in nodes if isinstance(node, ast.alias)}
    others |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    if name not in others.union(known):
        remedy = suggestion(name, known) or (f"it has {', '.join(known)}" if known else "define it")
        yield Problem("reward.function", f"{file} defines no {name}", remedy)
