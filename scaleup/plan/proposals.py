"""A config's plan goes in; what it needs and what it costs comes out, as a proposal for another config to become it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scaleup.config.run import RunConfig
from scaleup.config.stages.base import TrainingConfig
from scaleup.plan.alternatives import Overrides
from scaleup.plan.compute import flops_a_token
from scaleup.plan.facts import ModelFacts
from scaleup.plan.stages import planner_of
from scaleup.plan.strategy import RankBudget
from scaleup.plan.traffic import Traffic, step_traffic
from scaleup.plan.types import Plan

Kind = Literal["same steps", "adapter", "processes"]
"""Names what a proposal changes: how a step is done; what is trained; how many devices do it."""


@dataclass(frozen=True)
class Proposal:
    """Holds a config that fits, and what it costs."""

    kind: Kind
    changes: Overrides
    """Lists what differs from the config as it was planned."""
    overrides: Overrides
    """Lists all that `scaleup run CONFIG` needs to be told."""
    strategy: str
    num_processes: int
    num_nodes: int
    micro_batch: int | None
    accumulation: int | None
    needs: int
    """Counts the bytes of a rank: its peak where the model could be traced, else what it holds beside activations."""
    is_traced: bool
    host: int
    """Counts the bytes of a rank that are offloaded to main memory."""
    recomputed_flops: float
    """Is what recomputed activations add to the operations of a step, one forward pass, as a share of them."""
    communication: int
    """Counts the bytes that a rank sends to others in an optimizer step."""
    offload: int
    """Counts the bytes between a device and main memory in a step."""
    trainable: float
    """Is the share of the parameters that is trained."""

    @property
    def cost(self) -> tuple[float, ...]:
        """Returns what orders proposals that change equally much: recomputation, then traffic, then memory."""
        return self.recomputed_flops, self.communication + self.offload, self.needs


def proposal_of(kind: Kind, changes: Overrides, overrides: Overrides, config: RunConfig, plan: Plan) -> Proposal:
    """Returns a planned config as a proposal."""
    learner = planner_of(config).trains_as(config)
    assert isinstance(learner, TrainingConfig)
    group, batch, model = plan.groups[0], plan.batch, plan.model
    row = next(row for row in plan.memory if row.strategy == group.strategy)
    traffic = _traffic(learner, plan)
    return Proposal(
        kind=kind,
        changes=changes,
        overrides=overrides,
        strategy=group.strategy,
        num_processes=group.num_processes,
        num_nodes=group.num_nodes,
        micro_batch=batch.micro_batch if batch else None,
        accumulation=batch.accumulation if batch else None,
        needs=RankBudget(group.device, plan.device_memory, None).needs(row),
        is_traced=row.peak is not None,
        host=row.host,
        recomputed_flops=_recomputed(learner, model),
        communication=traffic.communication,
        offload=traffic.offload,
        trainable=model.num_trainable_parameters / model.num_parameters,
    )


def _recomputed(learner: TrainingConfig, model: ModelFacts) -> float:
    if not learner.gradient_checkpointing:
        return 0.0
    once, again = (flops_a_token(model, learner.data.max_length, is_on) for is_on in (False, True))
    return again / once - 1


def _traffic(learner: TrainingConfig, plan: Plan) -> Traffic:
    """Returns the traffic of an optimizer step, of PPO's without the rollout. What is frozen beside the model in one
    engine (a teacher, a reference) counts like the model, which is too much for it."""
    facts = planner_of(learner).trained(learner, plan.facts)
    group, micro_batches = plan.groups[0], plan.batch.accumulation if plan.batch else 1
    if plan.rollouts is not None:
        micro_batches = -(-plan.rollouts.rank_mini_batch // plan.rollouts.micro_batch)
    return step_traffic(facts, learner, group.strategy, group.num_processes, micro_batches)
