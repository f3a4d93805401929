"""A config's reward source at work: what the policy asks, and in a reward group, what answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch

from scaleup.artifacts.bridge_file import BridgeFile
from scaleup.artifacts.files import write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.rl import RewardSource
from scaleup.config.stages import PPOConfig
from scaleup.distributed.bridge import BridgeClient
from scaleup.distributed.bridge_store import BridgePlace
from scaleup.distributed.runtime import Runtime
from scaleup.distributed.signals import STOPPED
from scaleup.models.scoring import Scorer, load_scorer
from scaleup.plan.facts import ModelFacts
from scaleup.plan.types import Plan
from scaleup.rl.http_rewards import HttpRewards
from scaleup.rl.placements import ColocatedRewards, FunctionRewards, GroupRewards
from scaleup.rl.reward_server import serve
from scaleup.rl.rewards import Rewards, Sample


def rewards_of(config: PPOConfig, plan: Plan, runtime: Runtime, run: RunFolder) -> Rewards:
    """On every rank of the policy. Raises ScaleupError where the source cannot be had."""
    source = config.reward
    if source.placement == "function":
        assert source.function is not None
        return FunctionRewards(runtime, source.function)
    if source.placement == "http":
        assert source.url is not None
        return HttpRewards(runtime, source.url, source.timeout_seconds, source.reconnect_seconds)
    if source.placement == "colocated":
        return ColocatedRewards(runtime, _score(_scorer(source, plan.reward, runtime.device)))
    place, model = _place(plan, run), _name(source)
    client = BridgeClient(
        runtime,
        place,
        model,
        source.timeout_seconds,
        source.reconnect_seconds,
        on_lost=lambda why: write_json(run.lost_file, {"why": why}),
        on_found=lambda: run.lost_file.unlink(missing_ok=True),
    )
    return GroupRewards(runtime, client)


def serve_rewards(config: PPOConfig, plan: Plan, runtime: Runtime, run: RunFolder) -> None:
    """On every rank of the reward group, until the policy needs no more scores. A process that is stopped before ends
    with an exit code that says so: the policy still needs the group."""
    runtime.progress.report("loading the reward model")
    scorer = _scorer(config.reward, plan.reward, runtime.device)
    if runtime.gathers_weights:
        scorer.model = runtime.prepare(scorer.model)
    # the policy, which may take long to load, is watched by an agent: we end with it
    patience = max(plan.group("policy").timeout_seconds, config.reward.reconnect_seconds)
    serve(runtime, _place(plan, run), _name(config.reward), _score(scorer), patience)
    if runtime.stop.requested:
        sys.exit(STOPPED)


def _scorer(source: RewardSource, facts: ModelFacts | None, device: torch.device) -> Scorer:
    assert facts is not None, "the plan has looked at the reward model"
    return load_scorer(source, facts, device)


def _score(scorer: Scorer) -> Callable[[Sequence[Sample]], list[float]]:
    return lambda samples: scorer.score([(sample.prompt, sample.response) for sample in samples])


def _name(source: RewardSource) -> str:
    assert source.model is not None
    return source.model.path


def _place(plan: Plan, run: RunFolder) -> BridgePlace:
    meeting = BridgeFile.read(run.bridge_file)
    return BridgePlace(meeting.address, meeting.port, meeting.secret, plan.group("policy").num_processes)
