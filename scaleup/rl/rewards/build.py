"""The rewards of a config go in; the policy's side of them, or the loop of a reward group, comes out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch

from scaleup.artifacts.bridge_file import BridgeFile
from scaleup.artifacts.files import write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.bridge.client import BridgeClient
from scaleup.bridge.store import BridgePlace
from scaleup.config.reward_source import RewardSource, WeightedReward
from scaleup.config.stages.rl import PolicyConfig
from scaleup.distributed.runtime import Runtime
from scaleup.distributed.signals import STOPPED
from scaleup.models.scoring import Reader, Scored, Scorer, load_scorer
from scaleup.plan.facts import ModelFacts
from scaleup.plan.types import Plan
from scaleup.rl.rewards.functions import FunctionCall, FunctionRewards
from scaleup.rl.rewards.http import Endpoint, HttpRewards
from scaleup.rl.rewards.interface import Rewards, RewardSet, Sample
from scaleup.rl.rewards.judge import JudgeRewards, authorization
from scaleup.rl.rewards.placements import ColocatedRewards, GroupRewards
from scaleup.rl.rewards.serve import serve
from scaleup.train.job import Job


def rewards_of(job: Job[PolicyConfig]) -> RewardSet:
    """Return the rewards that every rank of the policy uses. Raises ScaleupError if a source is unusable."""
    sources = job.config.reward_sources
    return RewardSet({each.name: _placed(job, each) for each in sources}, [each.weight for each in sources])


def _placed(job: Job[PolicyConfig], reward: WeightedReward) -> Rewards:
    """Return the policy's side of one source."""
    source, plan, runtime, run = reward.source, job.plan, job.runtime, job.folder
    if source.placement == "function":
        assert source.function is not None
        limits = source.timeout_seconds, source.retries
        call = FunctionCall(source.function, source.arguments, *limits, as_messages=job.config.gives_messages)
        return FunctionRewards(runtime, call, f"{reward.key}.function")
    if source.placement == "http":
        return _service(runtime, reward)
    if source.placement == "colocated":
        scorer = _scorer(source, plan.models[f"{reward.key}.model"], runtime.device)
        return ColocatedRewards(runtime, _score(scorer), f"{reward.key}.model")
    place, model = _place(plan, run, reward), _name(source)
    lost = run.lost_file(reward.group)
    client = BridgeClient(
        runtime,
        place,
        model,
        source.timeout_seconds,
        source.reconnect_seconds,
        on_lost=lambda why: write_json(lost, {"why": why}),
        on_found=lambda: lost.unlink(missing_ok=True),
    )
    return GroupRewards(runtime, client, f"{reward.key} group")


def _service(runtime: Runtime, reward: WeightedReward) -> Rewards:
    source, where = reward.source, f"{reward.key}.url"
    assert source.url is not None
    limits = source.timeout_seconds, source.reconnect_seconds
    if source.judge is None:
        return HttpRewards(runtime, Endpoint(source.url, *limits), where)
    headers = authorization(source.judge, reward.key)
    return JudgeRewards(runtime, Endpoint(source.url, *limits, headers), source.judge, where)


def serve_rewards(job: Job[PolicyConfig]) -> None:
    """Serve on every rank of a reward group until the policy needs no more scores. A process that is stopped before
    ends with exit code 75: the policy still needs the group."""
    plan, runtime = job.plan, job.runtime
    reward = next(each for each in job.config.reward_groups if each.group == runtime.group.name)
    source = reward.source
    runtime.progress.report("loading the reward model")
    scorer = _scorer(source, plan.models[f"{reward.key}.model"], runtime.device, deferred=runtime.gathers_weights)
    if runtime.gathers_weights:
        scorer.model = runtime.prepare(scorer.model)
    # the policy, which may take long to load, is watched by an agent: we end with it
    patience = max(plan.group("policy").timeout_seconds, source.reconnect_seconds)
    score, timeline = _score(scorer), job.timeline

    def timed(samples: Sequence[Sample]) -> list[float]:
        with timeline.span("scoring"):
            return score(samples)

    serve(runtime, _place(plan, job.folder, reward), _name(source), timed, patience)
    if runtime.stop.requested:
        sys.exit(STOPPED)


def _scorer(source: RewardSource, facts: ModelFacts | None, device: torch.device, deferred: bool = False) -> Scorer:
    assert facts is not None, "the plan has looked at the reward model"
    return load_scorer(source.scorer, facts, device, deferred)


def _score(scorer: Scorer) -> Callable[[Sequence[Sample]], list[float]]:
    return lambda samples: scorer.score([scored_of(scorer.reader, sample) for sample in samples])


def scored_of(reader: Reader, sample: Sample) -> Scored:
    """Return what a reward model is asked about: the conversation where it has a chat template, else the texts."""
    if sample.chat is None or not reader.reads_chats:
        return sample.prompt, sample.response
    return sample.chat, [{"role": "assistant", "content": sample.response}]


def _name(source: RewardSource) -> str:
    assert source.model is not None
    return source.model.path


def _place(plan: Plan, run: RunFolder, reward: WeightedReward) -> BridgePlace:
    bridge = BridgeFile.read(run.bridge_file(reward.group))
    return BridgePlace(bridge.address, bridge.port, bridge.secret, plan.group("policy").num_processes, reward.key)
