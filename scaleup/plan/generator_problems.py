"""A config and its model's facts go in; problems of a generator come out, by name before anything starts: an engine
that is not there, and what it does not know."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from scaleup.config.adapters import LoraAdapter
from scaleup.config.algorithms import ReMaxAlgorithm
from scaleup.config.generator import GeneratorConfig
from scaleup.config.schema import ParallelConfig
from scaleup.config.stages.base import TrainingConfig
from scaleup.config.stages.rl import PolicyConfig
from scaleup.errors import Problem
from scaleup.plan.facts import ModelFacts
from scaleup.plan.groups import device_of
from scaleup.plan.machine import Machine
from scaleup.plan.model_path import saved_type

READ = ("num_processes", "device", "heartbeat_timeout_seconds")
"""Lists the keys of `generator.parallel` that are read."""
REGISTRY = "vllm/model_executor/models/registry.py"
MAKE = "make vllm, then name .venv-vllm/bin/python"


def generator_problems(config: PolicyConfig, generator: GeneratorConfig, machine: Machine) -> Iterator[Problem]:
    """Yields problems of the section `generator`, and of what does not go with it."""
    own = "group" if generator.is_group else "policy"
    if generator.placement not in (None, own):
        what = f"{generator.engine} draws in placement {own}"
        yield Problem("generator.placement", what, f"use {own}, or leave it out")
    if not generator.is_group:
        for name in _given(generator, ("engine", "placement")):
            yield Problem(f"generator.{name}", "has no meaning for engine transformers", "leave it out")
        return
    if generator.python is None:
        yield Problem("generator.python", "is needed by generator.engine: vllm", MAKE)
    elif not machine.is_described and (flaw := python_flaw(generator.python)):
        yield Problem("generator.python", flaw, MAKE)
    for name in _given(generator.parallel, READ):
        yield Problem(f"generator.parallel.{name}", "has no meaning for vllm", "leave it out")
    if generator.staleness:
        yield from _stale_problems(config)
    yield from _policy_problems(config)
    yield from _device_problems(config, generator, machine)


def _given(section: GeneratorConfig | ParallelConfig, meant: tuple[str, ...]) -> Iterator[str]:
    """Yields the keys of a section, but those that are meant, that have another value than by default."""
    for name, field in type(section).model_fields.items():
        if name not in meant and getattr(section, name) != field.get_default(call_default_factory=True):
            yield name


def _stale_problems(config: PolicyConfig) -> Iterator[Problem]:
    """Yields what needs responses by the policy as it is."""
    where, remedy, algorithm = "generator.staleness", "use 0", config.policy_gradient
    if algorithm.dynamic_sampling:
        what = "1 is not supported with algorithm.dynamic_sampling, whose further prompts nobody knows ahead"
        yield Problem(where, what, remedy)
    if isinstance(algorithm, ReMaxAlgorithm):
        what = "1 is not supported with remax, whose baseline is the greedy response of the policy that drew"
        yield Problem(where, what, remedy)


def _policy_problems(config: TrainingConfig) -> Iterator[Problem]:
    """Yields policies that vLLM cannot load."""
    adapter, instead = config.adapter, "or use generator.engine: transformers"
    if config.quantization is not None:
        what = f"a policy in {config.quantization} is not supported with generator.engine: vllm"
        yield Problem("quantization", what, f"leave it out, {instead}")
    if adapter is None:
        return
    if not isinstance(adapter, LoraAdapter):
        what = f"{adapter.type} is not supported with generator.engine: vllm"
        yield Problem("adapter.type", what, f"use lora, train the whole model, {instead}")
        return
    for name, has in {
        "use_dora": adapter.use_dora,
        "modules_to_save": adapter.modules_to_save,
        "bias": adapter.bias != "none",
    }.items():
        if has:
            yield Problem(f"adapter.{name}", "is not supported with generator.engine: vllm", f"leave it out, {instead}")
    if config.model.new_tokens:
        what = "new tokens beside an adapter are not supported with generator.engine: vllm"
        yield Problem("model.new_tokens", what, f"train the whole model, {instead}")


def _device_problems(config: TrainingConfig, generator: GeneratorConfig, machine: Machine) -> Iterator[Problem]:
    """Yields an engine for which this machine has no GPUs beside the groups before it."""
    where, needed = "generator.parallel", generator.parallel.num_processes
    if machine.is_described or device_of(generator.parallel, machine) != "cuda":
        return
    groups = [each.source.parallel for each in config.reward_groups if not each.source.own_nodes]
    used = sum(
        each.num_processes // each.num_nodes
        for each in (config.parallel, *groups)
        if device_of(each, machine) == "cuda"
    )
    if used + needed > machine.num_gpus:
        what = f"{used} of other groups and {needed} of the generator need {used + needed} GPUs, and this machine has "
        remedy = f"use fewer processes, or {where}.device: cpu"
        yield Problem(f"{where}.num_processes", f"{what}{machine.num_gpus}", remedy)


def engine_problems(generator: GeneratorConfig, facts: ModelFacts) -> Iterator[Problem]:
    """Yields what of a policy's model an engine does not know."""
    if not generator.is_group:
        return
    where, remedy, python = "generator.engine", "use transformers", generator.python
    known = known_models(python) if python else frozenset()
    if facts.task == "seq2seq_lm":
        yield Problem(where, f"vllm has no encoder-decoder models, as {facts.architecture} is", remedy)
    elif known and facts.architecture not in known:
        yield Problem(where, f"the vLLM of {python} has no {facts.architecture}", remedy)
    if facts.adapter is not None and (kind := saved_type(Path(facts.adapter))) != "lora":
        yield Problem(where, f"vllm takes adapters of LoRA alone, and {facts.adapter} is of {kind}", remedy)


def python_flaw(python: str) -> str:
    """Returns what is wrong with the Python of an engine; empty where nothing can be seen."""
    if not os.access(python, os.X_OK) or not Path(python).is_file():
        return f"there is no program {python}"
    return "" if registry_of(python) else f"the environment of {python} has no vLLM"


def registry_of(python: str) -> Path | None:
    """Returns the file of an environment's vLLM that lists its models."""
    found = Path(python).parent.parent.glob(f"lib/python3*/site-packages/{REGISTRY}")
    return next(iter(sorted(found)), None)


def known_models(python: str) -> frozenset[str]:
    """Returns the architectures that an environment's vLLM has, read from its source: to import it takes seconds."""
    registry = registry_of(python)
    text = registry.read_text(encoding="utf-8") if registry else ""
    return frozenset(re.findall(r'^\s*"(\w+)":', text, re.MULTILINE))
