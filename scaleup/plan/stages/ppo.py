"""This module plans PPO: how a rollout divides into optimizer steps and over processes, what a rank holds of a policy,
and where rewards come from."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from scaleup.config.adapters import LoraAdapter
from scaleup.config.mistakes import suggestion
from scaleup.config.reward_source import RewardSource
from scaleup.config.schema import GenerationConfig
from scaleup.config.stages.ppo import PPOConfig
from scaleup.errors import Problem
from scaleup.plan.arithmetic import DEFAULT_BATCH_SIZE
from scaleup.plan.compat import Tested
from scaleup.plan.facts import REWARD_MODEL, ModelFacts, ModelRequest, RowsRequest, Tensors
from scaleup.plan.groups import device_of
from scaleup.plan.machine import Machine
from scaleup.plan.memory import gathered_bytes, training_memory
from scaleup.plan.model_path import model_path_problems
from scaleup.plan.rules import is_t5, quantized_beside, single_problems, t5_in_fp16
from scaleup.plan.scorers import reward_model_problems
from scaleup.plan.stages.base import Facts, Rows
from scaleup.plan.stages.supervised import TrainingPlanner
from scaleup.plan.types import MemoryPlan, RolloutPlan
from scaleup.records.check import DataCheck

OF_A_MODEL = ("label", "score", "template", "max_length", "normalize", "batch_size", "quantization", "mixed_precision")
OF_A_GROUP = ("parallel", "own_nodes", "max_restarts", "bridge_port")
OF_OTHERS = ("timeout_seconds", "reconnect_seconds")
"""Lists the keys of what is requested over a connection."""

MEANT = {
    "group": ("model", *OF_A_MODEL, *OF_A_GROUP, *OF_OTHERS),
    "colocated": ("model", *OF_A_MODEL),
    "http": ("url", *OF_OTHERS),
    "function": ("function",),
}
"""Maps each placement -> the keys that it reads."""
NEEDED = {"group": "model", "colocated": "model", "http": "url", "function": "function"}


class PPOPlanner(TrainingPlanner[PPOConfig]):
    tested = Tested(
        adapters=frozenset({"full", "lora"}),
        precisions=frozenset({"no"}),
        also=frozenset(
            {
                *(("full", strategy, None, "bf16") for strategy in ("ddp", "zero3", "fsdp2")),
                *(("lora", strategy, "8bit", "no") for strategy in ("ddp", "zero2")),
                *(("lora", strategy, "4bit", "no") for strategy in ("single", "ddp", "zero3")),
                *(("ia3", strategy, None, "no") for strategy in ("single", "ddp")),
            }
        ),
        kind="PPO of ",
    )

    def generates(self, config: PPOConfig) -> bool:
        return True

    def splits(self, config: PPOConfig) -> dict[str, Rows]:
        return {"train": "prompts", "test": "prompts"} if config.data.test else {"train": "prompts"}

    def tokenized(self, config: PPOConfig) -> dict[str, Rows]:
        return self.splits(config)

    def readers(self, config: PPOConfig) -> dict[str, RowsRequest]:
        readers = super().readers(config)
        if config.reward.model is None or config.reward.template or not readers:
            return readers
        return readers | {REWARD_MODEL: readers["model"].model_copy(update={"by_own_template": True, "tokens": {}})}

    def quantized_problems(self, config: PPOConfig) -> Iterator[Problem]:
        if config.reward.model is not None:
            yield from quantized_beside(REWARD_MODEL, config.reward.model)
        yield from super().quantized_problems(config)

    def problems(self, config: PPOConfig, machine: Machine) -> Iterator[Problem]:
        yield from super().problems(config, machine)
        if config.reward.parallel.progress_timeout_seconds is not None:
            what = "a reward group that gives no answers is started again after reward.timeout_seconds"
            yield Problem("reward.parallel.progress_timeout_seconds", what, "leave it out")
        yield from rollout_problems(config)
        yield from reward_source_problems(config, machine)
        yield from self.optimization_problems(config)

    def steps(self, config: PPOConfig) -> tuple[int | None, str]:
        return config.ppo.num_optimizer_steps, "the run's optimizer steps,"

    def models(self, config: PPOConfig) -> dict[str, ModelRequest]:
        models = super().models(config)
        if (model := config.reward.model) is None:
            return models
        scorer = model.model_copy(update={"task": "sequence_classification"})
        return models | {REWARD_MODEL: ModelRequest(**scorer.model_dump(), quantization=config.reward.quantization)}

    def facts_problems(self, config: PPOConfig, facts: ModelFacts, where: str) -> Iterator[Problem]:
        if where != REWARD_MODEL:
            yield from super().facts_problems(config, facts, where)
            return
        yield from reward_model_problems(config.reward.scorer, facts)
        if config.reward.mixed_precision == "fp16" and is_t5(facts.model_type):
            yield t5_in_fp16("reward.mixed_precision")

    def length_problems(self, config: PPOConfig, facts: ModelFacts, where: str) -> Iterator[Problem]:
        yield from response_problems(config, facts)
        yield from super().length_problems(config, facts, where)

    def trained(self, config: PPOConfig, facts: Facts) -> ModelFacts:
        return policy_facts(config, facts["model"])

    def memory(self, config: PPOConfig, facts: Facts, strategy: str) -> MemoryPlan:
        return policy_memory(config, facts["model"], strategy)

    def rollouts(self, config: PPOConfig, data: DataCheck) -> RolloutPlan | None:
        return rollout_plan(config, data)

    def generation(self, config: PPOConfig) -> GenerationConfig:
        return config.generation or GenerationConfig(max_new_tokens=config.ppo.max_new_tokens)


def rollout_plan(config: PPOConfig, data: DataCheck) -> RolloutPlan:
    """Returns the division of rollouts of a config that has no problems."""
    ppo = config.ppo
    mini_batch = ppo.rollout_batch_size // ppo.num_mini_batches
    rank_mini_batch = mini_batch // config.parallel.num_processes
    counts = [summary.rows for summary in data.sources.get("train", [])]
    return RolloutPlan(
        num_rollouts=ppo.num_rollouts,
        rows=ppo.rollout_batch_size,
        passes=ppo.num_ppo_epochs,
        num_mini_batches=ppo.num_mini_batches,
        mini_batch=mini_batch,
        rank_mini_batch=rank_mini_batch,
        micro_batch=min(rank_mini_batch, config.train.per_device_train_batch_size or DEFAULT_BATCH_SIZE),
        num_steps=config.ppo.num_optimizer_steps,
        num_prompts=None if None in counts else sum(count for count in counts if count),
    )


def rollout_problems(config: PPOConfig) -> Iterator[Problem]:
    """Yields sizes that do not divide, and what has no meaning for PPO."""
    ppo, world = config.ppo, config.parallel.num_processes
    mini_batch, rest = divmod(ppo.rollout_batch_size, ppo.num_mini_batches)
    if rest:
        what = f"{ppo.rollout_batch_size} rows do not divide into {ppo.num_mini_batches} mini-batches"
        remedy = f"use a multiple of {ppo.num_mini_batches * world}"
        yield Problem("ppo.rollout_batch_size", what, remedy)
    elif mini_batch % world:
        what = f"mini-batches of {mini_batch} rows do not divide over {world} processes"
        remedy = f"use a ppo.rollout_batch_size that is a multiple of {ppo.num_mini_batches * world}"
        yield Problem("ppo.num_mini_batches", what, remedy)
    if ppo.response_length_min is not None and ppo.response_length_min > ppo.max_new_tokens:
        what = f"{ppo.response_length_min} is more than ppo.max_new_tokens {ppo.max_new_tokens}"
        yield Problem("ppo.response_length_min", what, f"use at most {ppo.max_new_tokens}")
    if ppo.value_model == "separate" and config.quantization is not None:
        what = f"a trunk of its own would be a second copy of the base in {config.quantization}, and none is made"
        yield Problem("ppo.value_model", what, "use head, or leave quantization out")
    if ppo.value_model == "separate" and config.model.new_tokens and isinstance(config.adapter, LoraAdapter):
        what = "separate is not supported with model.new_tokens beside lora, whose rows are in the head"
        yield Problem("ppo.value_model", what, "use head, or train the whole model")
    yield from _data_problems(config)


def _data_problems(config: PPOConfig) -> Iterator[Problem]:
    data = config.data
    for key in ("validation", "validation_fraction"):
        if getattr(data, key) is not None:
            yield Problem(f"data.{key}", "has no meaning for ppo", "hold prompts out with data.test")
    if data.packing:
        yield Problem("data.packing", "has no meaning for ppo: each response follows its own prompt", "leave it out")
    if data.streaming:
        yield Problem("data.streaming", "PPO draws its prompts from all rows", "leave it out")
    if config.train.eval_steps is not None and data.test is None:
        yield Problem("train.eval_steps", "needs held-out prompts", "give data.test")


def response_problems(config: PPOConfig, facts: ModelFacts) -> Iterator[Problem]:
    """Yields prompts and responses that the policy's own files rule out."""
    if facts.eos_token is None:
        what = f"the tokenizer of {config.model.path} has no eos token: no response would end by itself"
        yield Problem("model.tokenizer", what, "use a tokenizer that has one")
    if facts.max_positions is None:
        return
    new, most = config.ppo.max_new_tokens, facts.max_positions
    room = most - (0 if facts.task == "seq2seq_lm" else config.data.max_length)
    if facts.task == "seq2seq_lm" and new >= most:  # the decoder's start takes a position
        yield Problem("ppo.max_new_tokens", f"{new} are more than the decoder has positions for", f"use under {most}")
    elif 0 <= room < new:
        what = f"{new} and prompts of data.max_length {config.data.max_length} are more than model's {most} positions"
        yield Problem("ppo.max_new_tokens", what, f"use at most {most} together")


def reference_tensors(config: PPOConfig, facts: ModelFacts) -> list[Tensors]:
    """Returns the frozen copy that a policy is compared with: of the whole model; of the adapter alone where one is
    trained further; none beside a new adapter, without which a policy is its own reference."""
    is_further = facts.adapter is not None or getattr(config.adapter, "path", None) is not None
    copied = [] if config.adapter and not is_further else [t for t in facts.tensors if t.trainable or not is_further]
    return [tensors.model_copy(update={"trainable": False}) for tensors in copied]


def policy_facts(config: PPOConfig, facts: ModelFacts, with_reference: bool = True) -> ModelFacts:
    """Returns the facts of what PPO trains as one model: with its value head, a trunk for the values where the config
    has one, and the reference, frozen. Adapters are trained in both trunks; the value trunk's head is frozen where the
    embeddings do not share it."""
    added = [Tensors(shape=(1, facts.hidden_size), count=1), Tensors(shape=(1,), count=1)]
    if config.ppo.value_model == "separate":
        head = facts.vocab_size, facts.hidden_size
        unused = next((t for t in facts.tensors if t.shape == head and t.count > 1 and t.trainable), None)
        for tensors in facts.tensors:
            added.append(tensors.model_copy(update={"count": tensors.count - (tensors is unused)}))
        added += [Tensors(shape=head, count=1, trainable=False)] if unused else []
    added += reference_tensors(config, facts) if with_reference else []
    more = {name: sum(t.elements * t.count for t in added if t.trainable or is_all) for name, is_all in COUNTS.items()}
    update = {name: getattr(facts, name) + count for name, count in more.items()}
    return facts.model_copy(update={"tensors": (*facts.tensors, *added), **update})


COUNTS = {"num_parameters": True, "num_trainable_parameters": False}
"""Maps each count of the facts -> whether frozen tensors are in it."""


def policy_memory(config: PPOConfig, facts: ModelFacts, strategy: str) -> MemoryPlan:
    """Returns the bytes that a rank holds under a strategy; activations come on top."""
    count, rows = config.parallel.num_processes, config.train.per_device_train_batch_size or DEFAULT_BATCH_SIZE
    accumulates = config.ppo.rollout_batch_size // config.ppo.num_mini_batches // count > rows
    alone = training_memory(policy_facts(config, facts, with_reference=False), config, strategy, count, accumulates)
    whole = training_memory(policy_facts(config, facts), config, strategy, count, accumulates)
    update = {"weights": alone.weights, "reference": whole.weights - alone.weights}
    return whole.model_copy(update={**update, "gathered": gathered_bytes(facts, config, whole)})


def reward_source_problems(config: PPOConfig, machine: Machine) -> Iterator[Problem]:
    """Yields keys of `reward` that its placement needs and lacks, or does not read."""
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
    if config.reward_group is not None:
        yield from _group_problems(config, machine)
    device = device_of(reward.parallel if config.reward_group else config.parallel, machine)
    if reward.mixed_precision == "fp16" and device == "cpu" and needed == "model":
        yield Problem("reward.mixed_precision", "fp16 needs a GPU, and rewards come from the CPU", 'use bf16, or "no"')


def _group_problems(config: PPOConfig, machine: Machine) -> Iterator[Problem]:
    """Yields problems of `reward.parallel`."""
    reward, parallel = config.reward, config.reward.parallel
    where, count = "reward.parallel", parallel.num_processes
    if parallel.strategy in ("auto", "zero1", "zero2"):
        what = f"{parallel.strategy} is for training, and a reward group only scores"
        yield Problem(f"{where}.strategy", what, "use ddp, or zero3 or fsdp2 for a model that must be sharded")
    yield from single_problems(parallel, where)
    if reward.quantization is not None and parallel.strategy in ("zero3", "fsdp2"):
        what = f"{parallel.strategy} shards weights, and those of a quantized reward model stay whole"
        yield Problem(f"{where}.strategy", what, "use ddp, or leave reward.quantization out")
    if parallel.gather_for_generation != "auto":
        yield Problem(f"{where}.gather_for_generation", "a reward group generates nothing", "leave it out")
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
    """Yields problems of a file's function as it is read, not run: errors of running it are the worker's to find."""
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


PLANNER = PPOPlanner()
