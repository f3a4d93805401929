"""PPO's arithmetic: how a rollout divides into optimizer steps and over processes, and what a rank has of a policy."""

from __future__ import annotations

from collections.abc import Iterator

from scaleup.config.schema import RunConfig
from scaleup.config.stages import PPOConfig
from scaleup.errors import Problem
from scaleup.plan.batches import ROWS_BY_DEFAULT
from scaleup.plan.facts import ModelFacts, Tensors
from scaleup.plan.machine import Machine
from scaleup.plan.memory import training_memory
from scaleup.plan.types import MemoryPlan, RolloutPlan
from scaleup.records.check import DataCheck


def rollout_plan(config: PPOConfig, data: DataCheck) -> RolloutPlan:
    """Of a config that has no problems."""
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
        micro_batch=min(rank_mini_batch, config.train.per_device_train_batch_size or ROWS_BY_DEFAULT),
        num_steps=num_steps(config),
        num_prompts=None if None in counts else sum(count for count in counts if count),
    )


def num_steps(config: PPOConfig) -> int:
    ppo = config.ppo
    return ppo.num_rollouts * ppo.num_ppo_epochs * ppo.num_mini_batches


def rollout_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    """Sizes that do not divide, and what has no meaning for PPO."""
    if not isinstance(config, PPOConfig):
        return
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
    """What the policy's own files say against its prompts and responses."""
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
    """The frozen copy that a policy is compared with: of the model, of an adapter that is trained further that alone,
    and none beside a new adapter, without which a policy is its own reference."""
    is_further = facts.adapter is not None or getattr(config.adapter, "path", None) is not None
    copied = [] if config.adapter and not is_further else [t for t in facts.tensors if t.trainable or not is_further]
    return [tensors.model_copy(update={"trainable": False}) for tensors in copied]


def policy_facts(config: PPOConfig, facts: ModelFacts, with_reference: bool = True) -> ModelFacts:
    """Of what PPO trains as one model: with its value head, a trunk for the values where asked for, and the reference,
    frozen. Adapters are trained in both trunks; the value trunk's head is frozen where the embeddings do not share
    it."""
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
"""A count of the facts, and whether frozen tensors are in it."""


def policy_memory(config: PPOConfig, facts: ModelFacts, strategy: str) -> MemoryPlan:
    """What a rank holds under a strategy; activations come on top."""
    count = config.parallel.num_processes
    alone = training_memory(policy_facts(config, facts, with_reference=False), config, strategy, count)
    whole = training_memory(policy_facts(config, facts), config, strategy, count)
    return whole.model_copy(update={"weights": alone.weights, "reference": whole.weights - alone.weights})
