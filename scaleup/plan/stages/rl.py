"""This module plans reinforcement learning: how a rollout divides into optimizer steps and over processes, and what a
rank holds of a policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from scaleup.config.adapters import LoraAdapter
from scaleup.config.algorithms import PPOAlgorithm
from scaleup.config.schema import GenerationConfig
from scaleup.config.stages.rl import PolicyConfig
from scaleup.errors import Problem
from scaleup.plan.arithmetic import DEFAULT_BATCH_SIZE
from scaleup.plan.compat import Tested
from scaleup.plan.facts import ModelFacts, ModelRequest, RowsRequest, Tensors, is_reward_model
from scaleup.plan.generator_problems import engine_problems, generator_problems
from scaleup.plan.machine import Machine
from scaleup.plan.memory import gathered_bytes, training_memory
from scaleup.plan.metrics import chosen_metric_problems, logged_figures
from scaleup.plan.reward_sources import reward_problems
from scaleup.plan.rules import is_t5, quantized_beside, t5_in_fp16
from scaleup.plan.scorers import reward_model_problems
from scaleup.plan.stages.base import Facts, Rows
from scaleup.plan.stages.supervised import TrainingPlanner
from scaleup.plan.twins import policy_twin
from scaleup.plan.types import MemoryPlan, RolloutPlan
from scaleup.records.check import DataCheck

P = TypeVar("P", bound=PolicyConfig)
ROLLOUT_METRICS = {
    "grpo": frozenset({"reward", "rewards/*/mean", "kl", "kl_response", "entropy", "completions/*"}),
    "ppo": frozenset({"objective/*", "response/*"}),
}
"""Maps whose metric names a run has -> what it logs of each rollout."""


class PolicyPlanner(TrainingPlanner[P]):
    """Answers for a stage that trains a policy on its own responses."""

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
        kind="reinforcement learning of ",
    )

    shown = frozenset({"scores"})

    def generates(self, config: P) -> bool:
        return True

    def splits(self, config: P) -> dict[str, Rows]:
        splits: dict[str, Rows] = {"train": "prompts"}
        if config.data.test:
            splits["test"] = "completions" if config.needs_references else "prompts"
        return splits | ({"supervised": "completions"} if config.policy_gradient.ptx_coef else {})

    def tokenized(self, config: P) -> dict[str, Rows]:
        return {split: "prompts" if split == "test" else rows for split, rows in self.splits(config).items()}

    def readers(self, config: P) -> dict[str, RowsRequest]:
        readers = super().readers(config)
        if not readers:
            return readers
        own = readers["model"].model_copy(update={"by_own_template": True, "tokens": {}})
        read = [reward for reward in config.reward_sources if reward.source.model and not reward.source.template]
        return readers | {f"{reward.key}.model": own for reward in read}

    def quantized_problems(self, config: P) -> Iterator[Problem]:
        for reward in config.reward_sources:
            if reward.source.model is not None:
                yield from quantized_beside(f"{reward.key}.model", reward.source.model)
        yield from super().quantized_problems(config)

    def problems(self, config: P, machine: Machine) -> Iterator[Problem]:
        yield from super().problems(config, machine)
        yield from algorithm_problems(config)
        yield from _data_problems(config)
        yield from _evaluation_problems(config)
        yield from chosen_metric_problems(config.train, config.evaluation, self.shown, machine)
        yield from reward_problems(config, machine)
        yield from generator_problems(config, config.generator, machine)
        yield from self.optimization_problems(config)

    def logged(self, config: P) -> frozenset[str]:
        of_rollouts = ROLLOUT_METRICS[config.metric_names]
        held_out = self.shown | {"kl", "length_mean"}
        return of_rollouts | (logged_figures(config.train, held_out, "eval/") if config.data.test else frozenset())

    def steps(self, config: P) -> tuple[int | None, str]:
        return config.rollout_settings.num_optimizer_steps, "the run's optimizer steps,"

    def models(self, config: P) -> dict[str, ModelRequest]:
        models = super().models(config)
        for reward in config.reward_sources:
            if (model := reward.source.model) is not None:
                scorer = model.model_copy(update={"task": "sequence_classification"})
                request = ModelRequest(**scorer.model_dump(), quantization=reward.source.quantization)
                models[f"{reward.key}.model"] = request
        return models

    def facts_problems(self, config: P, facts: ModelFacts, where: str) -> Iterator[Problem]:
        if not is_reward_model(where):
            yield from super().facts_problems(config, facts, where)
            yield from engine_problems(config.generator, facts)
            return
        reward = next(reward for reward in config.reward_sources if where == f"{reward.key}.model")
        yield from reward_model_problems(reward.source.scorer, facts, where)
        if reward.source.mixed_precision == "fp16" and is_t5(facts.model_type):
            yield t5_in_fp16(f"{reward.key}.mixed_precision")

    def length_problems(self, config: P, facts: ModelFacts, where: str) -> Iterator[Problem]:
        yield from response_problems(config, facts)
        yield from super().length_problems(config, facts, where)

    def trained(self, config: P, facts: Facts) -> ModelFacts:
        return policy_facts(config, facts["model"])

    def memory(self, config: P, facts: Facts, strategy: str) -> MemoryPlan:
        return policy_memory(config, facts["model"], strategy)

    def rollouts(self, config: P, data: DataCheck) -> RolloutPlan | None:
        return rollout_plan(config, data)

    def twin(self, config: P) -> dict[str, Any] | None:
        return policy_twin(config)

    def generation(self, config: P) -> GenerationConfig:
        return config.generation or GenerationConfig(max_new_tokens=config.rollout_settings.max_new_tokens)


class RLPlanner(PolicyPlanner[PolicyConfig]):
    """Answers for `stage: rl`."""


def rollout_plan(config: PolicyConfig, data: DataCheck) -> RolloutPlan:
    """Returns the division of rollouts of a config that has no problems."""
    rollouts = config.rollout_settings
    mini_batch = rollouts.batch_size // rollouts.num_mini_batches
    rank_mini_batch = mini_batch // config.parallel.num_processes
    counts = [summary.rows for summary in data.sources.get("train", [])]
    return RolloutPlan(
        num_rollouts=rollouts.num_rollouts,
        rows=rollouts.batch_size,
        num_generations=config.policy_gradient.num_generations,
        passes=rollouts.num_passes,
        num_mini_batches=rollouts.num_mini_batches,
        mini_batch=mini_batch,
        rank_mini_batch=rank_mini_batch,
        micro_batch=min(rank_mini_batch, config.train.per_device_train_batch_size or DEFAULT_BATCH_SIZE),
        num_steps=rollouts.num_optimizer_steps,
        num_prompts=None if None in counts else sum(count for count in counts if count),
    )


def algorithm_problems(config: PolicyConfig) -> Iterator[Problem]:
    """Yields settings of an algorithm that contradict one another, or the rest of the config."""
    chosen, world = config.policy_gradient, config.parallel.num_processes
    yield from chosen.problems(config.rollout_settings, world, config.key)
    if not isinstance(chosen, PPOAlgorithm) or chosen.value_model != "separate":
        return
    where = config.key("algorithm.value_model")
    if config.quantization is not None:
        what = f"a trunk of its own would be a second copy of the base in {config.quantization}, and none is made"
        yield Problem(where, what, "use head, or leave quantization out")
    if config.model.new_tokens and isinstance(config.adapter, LoraAdapter):
        what = "separate is not supported with model.new_tokens beside lora, whose rows are in the head"
        yield Problem(where, what, "use head, or train the whole model")


def _data_problems(config: PolicyConfig) -> Iterator[Problem]:
    data, stage = config.data, config.stage
    for key in ("validation", "validation_fraction"):
        if getattr(data, key) is not None:
            yield Problem(f"data.{key}", f"has no meaning for {stage}", "hold prompts out with data.test")
    if data.packing:
        what = f"has no meaning for {stage}: each response follows its own prompt"
        yield Problem("data.packing", what, "leave it out")
    if data.streaming:
        yield Problem("data.streaming", "prompts are drawn from all rows", "leave it out")


def _evaluation_problems(config: PolicyConfig) -> Iterator[Problem]:
    """Yields what asks for evaluations that there are none of."""
    train = config.train
    by_evaluation = ("early_stopping_patience", "load_best_model_at_end")
    for key in ("eval_steps", "eval_metrics", *by_evaluation):
        if getattr(train, key) and config.data.test is None:
            yield Problem(f"train.{key}", "needs held-out prompts", "give data.test")
        elif key in by_evaluation and getattr(train, key) and train.eval_steps is None:
            yield Problem(f"train.{key}", "needs evaluation during training", "give train.eval_steps")


def response_problems(config: PolicyConfig, facts: ModelFacts) -> Iterator[Problem]:
    """Yields prompts and responses that the policy's own files rule out."""
    if facts.eos_token is None:
        what = f"the tokenizer of {config.model.path} has no eos token: no response would end by itself"
        yield Problem("model.tokenizer", what, "use a tokenizer that has one")
    if facts.max_positions is None:
        return
    new, most, where = (
        config.rollout_settings.max_new_tokens,
        facts.max_positions,
        config.key("rollouts.max_new_tokens"),
    )
    room = most - (0 if facts.task == "seq2seq_lm" else config.data.max_length)
    if facts.task == "seq2seq_lm" and new >= most:  # the decoder's start takes a position
        yield Problem(where, f"{new} are more than the decoder has positions for", f"use under {most}")
    elif 0 <= room < new:
        what = f"{new} and prompts of data.max_length {config.data.max_length} are more than model's {most} positions"
        yield Problem(where, what, f"use at most {most} together")


def reference_tensors(config: PolicyConfig, facts: ModelFacts) -> list[Tensors]:
    """Returns the frozen copy that a policy is compared with: of the whole model; of the adapter alone where one is
    trained further; none beside a new adapter, without which a policy is its own reference, nor where the KL divergence
    counts for nothing."""
    if not config.has_reference:
        return []
    is_further = facts.adapter is not None or getattr(config.adapter, "path", None) is not None
    copied = [] if config.adapter and not is_further else [t for t in facts.tensors if t.trainable or not is_further]
    return [tensors.model_copy(update={"trainable": False}) for tensors in copied]


def policy_facts(config: PolicyConfig, facts: ModelFacts, with_reference: bool = True) -> ModelFacts:
    """Returns the facts of what is trained as one model: with its value head and a trunk for the values where the
    algorithm has them, and the reference, frozen. Adapters are trained in both trunks; the value trunk's head is frozen
    where the embeddings do not share it."""
    algorithm = config.policy_gradient
    added = []
    if isinstance(algorithm, PPOAlgorithm):
        added += [Tensors(shape=(1, facts.hidden_size), count=1), Tensors(shape=(1,), count=1)]
        if algorithm.value_model == "separate":
            added += _trunk_tensors(facts)
    added += reference_tensors(config, facts) if with_reference else []
    more = {name: sum(t.elements * t.count for t in added if t.trainable or is_all) for name, is_all in COUNTS.items()}
    update = {name: getattr(facts, name) + count for name, count in more.items()}
    return facts.model_copy(update={"tensors": (*facts.tensors, *added), **update})


def _trunk_tensors(facts: ModelFacts) -> list[Tensors]:
    """Returns the tensors of a second trunk, for values."""
    head = facts.vocab_size, facts.hidden_size
    unused = next((t for t in facts.tensors if t.shape == head and t.count > 1 and t.trainable), None)
    trunk = [t.model_copy(update={"count": t.count - (t is unused)}) for t in facts.tensors]
    return trunk + ([Tensors(shape=head, count=1, trainable=False)] if unused else [])


COUNTS = {"num_parameters": True, "num_trainable_parameters": False}
"""Maps each count of the facts -> whether frozen tensors are in it."""


def policy_memory(config: PolicyConfig, facts: ModelFacts, strategy: str) -> MemoryPlan:
    """Returns the bytes that a rank holds under a strategy; activations come on top."""
    count, rows = config.parallel.num_processes, config.train.per_device_train_batch_size or DEFAULT_BATCH_SIZE
    rollouts = config.rollout_settings
    accumulates = rollouts.batch_size // rollouts.num_mini_batches // count > rows
    alone = training_memory(policy_facts(config, facts, with_reference=False), config, strategy, count, accumulates)
    whole = training_memory(policy_facts(config, facts), config, strategy, count, accumulates)
    update = {"weights": alone.weights, "reference": whole.weights - alone.weights}
    return whole.model_copy(update={**update, "gathered": gathered_bytes(facts, config, whole)})


PLANNER = RLPlanner()
