"""The library, by every algorithm: whole runs of a few rollouts in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from scaleup.bridge.client import StopWhileWaiting
from scaleup.config.algorithms import AlgorithmSettings, RolloutSettings
from scaleup.errors import ScaleupError
from scaleup.rl import OptimizationConfig, RLTrainer, Sample
from scaleup.rl.generators import TransformersGenerator
from scaleup.rl.losses import LOG_RATIO_LIMIT
from scaleup.train.fit import Stopped

PROMPTS = ["hello", "what a film", "a", "the story", "good", "bad but", "xyz", "there was"]
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"type": "ppo"},
    "grpo": {"type": "grpo", "num_generations": 4},
    "grpo, every setting": {
        "type": "grpo",
        "num_generations": 4,
        "beta": 0.1,
        "epsilon_high": 0.28,
        "delta": 2.0,
        "loss_type": "sequence",
        "importance_sampling_level": "sequence",
        "entropy_coef": 0.01,
        "top_entropy_quantile": 0.6,
        "mask_truncated_completions": False,
        "soft_punish_cache": 2,
        "scale_rewards": "batch",
        "combine": "normalized_sum",
    },
    "rloo": {"type": "rloo"},
    "reinforce_pp": {"type": "reinforce_pp"},
    "reinforce_pp with groups": {"type": "reinforce_pp", "num_generations": 4, "kl_in": "loss", "kl_estimator": "k2"},
    "remax": {"type": "remax", "loss_type": "constant"},
}


NAMES = {
    *("reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "grad_norm", "learning_rate"),
    *(f"rewards/{name}/{what}" for name in ("vowels", "count") for what in ("mean", "std")),
    *("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "loss/policy", "loss/kl"),
    *("completions/mean_length", "completions/min_length", "completions/max_length", "completions/clipped_ratio"),
}


def vowels(samples: Sequence[Sample]) -> list[float]:
    return [sum(letter in "aeiou" for letter in s.response) - 0.1 * len(s.response) for s in samples]


def num_vowels(samples: Sequence[Sample]) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in s.response)) for s in samples]


@pytest.fixture
def trainer(load: Any, tmp_path: Path) -> Any:
    def made(
        algorithm: Mapping[str, Any],
        folder: str = "out",
        model: str = "tiny-llama",
        rewards: Any = vowels,
        batch: int = 4,
        optimization: Mapping[str, Any] | None = None,
        **rollouts: Any,
    ) -> RLTrainer:
        network, tokenizer = load(model)
        sizes = {"num_rollouts": 2, "batch_size": 8, "num_passes": 2, "num_mini_batches": 2, "max_new_tokens": 6}
        plain = {"learning_rate": 0.05, "optimizer": "sgd", "lr_scheduler_type": "constant", "save_steps": 1}
        return RLTrainer(
            network,
            tokenizer,
            PROMPTS,
            rewards,
            TypeAdapter[Any](AlgorithmSettings).validate_python(dict(algorithm)),
            RolloutSettings(**{**sizes, **rollouts}),
            train=OptimizationConfig(**{**plain, "per_device_train_batch_size": batch, **(optimization or {})}),
            held_out=PROMPTS[:3],
            output_dir=tmp_path / folder,
        )

    return made


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def largest_difference(one: RLTrainer, other: RLTrainer) -> float:
    left, right = (dict(each._job.model.named_parameters()) for each in (one, other))
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_stopped_and_resumed_is_straight_however_rows_are_batched(
    trainer: Any, tmp_path: Path, name: str, model: str
) -> None:
    settings, calls = ALGORITHMS[name], 0
    straight = trainer(settings, "straight", model)
    state = straight.train()
    assert (state.step, state.num_updates) == (2, 8)

    def fails(samples: Sequence[Sample]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == (4 if name == "remax" else 3):  # held-out prompts, a rollout, then this one
            raise KeyboardInterrupt
        return vowels(samples)

    with pytest.raises(KeyboardInterrupt):
        trainer(settings, "broken", model, rewards=fails).train()
    resumed = trainer(settings, "broken", model)
    assert resumed.train().step == 2
    assert largest_difference(straight, resumed) == 0
    kept = [
        {key: value for key, value in line.items() if not key.startswith(("time/", "memory"))}
        for folder in ("straight", "broken")
        for line in lines_of(tmp_path / folder)
    ]
    assert kept[: len(kept) // 2] == kept[len(kept) // 2 :]

    one = trainer(settings, "one", model, batch=1)
    one.train()
    assert largest_difference(straight, one) < 2e-6
    other = trainer(settings, "other", model, optimization={"learning_rate": 0.04})
    other.train()
    assert largest_difference(straight, other) > 1e-5


def test_what_is_not_needed_is_not_there(trainer: Any, tmp_path: Path) -> None:
    """No value head but for PPO, and no reference where the KL divergence counts for nothing."""
    parts = {}
    for name in ("ppo", "grpo", "rloo"):
        run = trainer(ALGORITHMS[name], name, num_rollouts=1)
        run.train()
        parts[name] = {key.partition(".")[0] for key, _ in run._job.model.named_parameters()}
        line = next(line for line in lines_of(tmp_path / name) if "reward" in line)
        assert ("kl" in line) == (name != "grpo")
        assert ("values/mean" in line) == (name == "ppo")
    assert parts == {
        "ppo": {"policy", "reference", "value_head"},
        "grpo": {"policy"},
        "rloo": {"policy", "reference"},
    }


def test_metrics_have_the_names_of_trl(trainer: Any, tmp_path: Path) -> None:
    settings = {**ALGORITHMS["grpo"], "beta": 0.1, "combine": "normalized_sum"}
    trainer(settings, rewards={"vowels": vowels, "count": num_vowels}, num_rollouts=1).train()
    line = next(line for line in lines_of(tmp_path / "out") if "reward" in line)
    assert set(line) >= NAMES
    assert line["reward"] == pytest.approx(line["rewards/vowels/mean"] + line["rewards/count/mean"])


def test_prompts_without_spread_give_way_to_others(trainer: Any, tmp_path: Path) -> None:
    """The reward tells responses to prompts of one length apart, and gives all others the same."""

    def reward(samples: Sequence[Sample]) -> list[float]:
        return [float(len(s.response)) if len(s.prompt) > 6 else 0.0 for s in samples]

    settings = {"type": "grpo", "num_generations": 4, "dynamic_sampling": 8}
    run = trainer(settings, "refilled", rewards=reward, response_length_min=1)
    state = run.train()
    shown = [line["frac_reward_zero_std"] for line in lines_of(tmp_path / "refilled") if "reward" in line]
    assert shown == [0, 0] and state.num_refilled > 0
    again = trainer(settings, "again", rewards=reward, response_length_min=1)
    again.train()
    assert largest_difference(run, again) == 0

    plain = trainer({**settings, "dynamic_sampling": 0}, "plain", rewards=reward, response_length_min=1)
    plain.train()
    shown = [line["frac_reward_zero_std"] for line in lines_of(tmp_path / "plain") if "reward" in line]
    assert max(shown) > 0


def test_nothing_is_learned_where_all_scores_are_equal(trainer: Any) -> None:
    """However often other prompts are asked; the rollout is as large as ever."""
    settings = {"type": "grpo", "num_generations": 4, "dynamic_sampling": 2}
    run = trainer(settings, "equal", rewards=lambda samples: [1.0] * len(samples), num_rollouts=1)
    before = {name: part.detach().clone() for name, part in run._job.model.named_parameters()}
    state = run.train()
    assert (state.num_updates, state.num_refilled) == (4, 4)
    assert all(torch.equal(part, before[name]) for name, part in run._job.model.named_parameters())


@pytest.mark.parametrize(
    ("settings", "rollouts", "where"),
    [
        ({"type": "grpo", "num_generations": 4}, {"batch_size": 10, "num_mini_batches": 1}, "rollouts.batch_size"),
        ({"type": "grpo", "kl_controller": "adaptive"}, {}, "algorithm.kl_controller"),
        ({"type": "remax", "combine": "normalized_sum"}, {}, "algorithm.combine"),
        ({"type": "rloo", "ptx_coef": 0.1}, {}, "algorithm.ptx_coef"),
    ],
)
def test_a_trainer_refuses_what_a_config_is_refused_for(
    trainer: Any, settings: dict[str, Any], rollouts: dict[str, Any], where: str
) -> None:
    with pytest.raises(ScaleupError, match=where):
        trainer(settings, **rollouts)


def test_an_evaluation_that_a_stop_cut_off_is_made_up(trainer: Any, tmp_path: Path) -> None:
    """The last of a run, too, whose rollouts are all there."""
    calls = 0

    def stops(samples: Sequence[Sample]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 4:  # held-out prompts, two rollouts, then held-out prompts again
            raise StopWhileWaiting
        return vowels(samples)

    settings = ALGORITHMS["rloo"]
    with pytest.raises(Stopped):
        trainer(settings, "cut", rewards=stops).train()
    assert [line["step"] for line in lines_of(tmp_path / "cut") if "eval/scores" in line] == [0]
    trainer(settings, "cut").train()
    trainer(settings, "whole").train()
    cut, whole = (
        [(line["step"], line["eval/scores"]) for line in lines_of(tmp_path / name) if "eval/scores" in line]
        for name in ("cut", "whole")
    )
    assert cut == whole and [step for step, _ in cut] == [0, 2]


@dataclass(frozen=True)
class ByAnother(TransformersGenerator):
    """Draws as the policy does, and tells log-probabilities as if another had drawn: 0, for the sake of the sums."""

    weighed: list[torch.Tensor] = field(default_factory=list)

    def batches(self, *asked: Any) -> Any:
        for drawn in super().batches(*asked):
            yield replace(drawn, logprobs=torch.zeros(drawn.responses.tokens.shape, dtype=torch.float64))

    def importance(self, log_ratio: torch.Tensor) -> Any:
        self.weighed.append(log_ratio)
        return torch.ones_like(log_ratio)


@pytest.mark.parametrize("level", ["token", "sequence", "trajectory"])
def test_importance_weights_are_of_what_the_ratio_is_of(trainer: Any, level: str) -> None:
    """Where a response has one ratio, it has one weight: of its tokens' mean, or of their sum."""
    run = trainer({"type": "rloo", "importance_sampling_level": level}, num_rollouts=1)
    run._job.generator = generator = ByAnother(run.runtime, run._job.model, 8)
    run.train()
    log_ratio = generator.weighed[1]  # after the held-out prompts
    assert log_ratio.shape[0] == 8
    assert (log_ratio.std(dim=1) < 1e-12).all() == (level != "token")
    of_tokens = {"sequence": (3, 9), "trajectory": (LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)}.get(level)
    if of_tokens is not None:  # each of 6 tokens costs some log(259) = 5.6 nats
        assert all(of_tokens[0] <= -each <= of_tokens[1] for each in log_ratio[:, 0].tolist())


@dataclass
class Another:
    """Draws as the policy does, and is not known to."""

    policy: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_one_step_a_rollout_takes_no_forward_pass_of_its_own(
    trainer: Any, tmp_path: Path, model: str, beta: float
) -> None:
    """The step's own log-probabilities are those of the rollout: two rollouts of two micro-batches each are learned
    from, and three held-out prompts, in one, are asked before and after."""
    settings, counts, runs = {"type": "grpo", "num_generations": 4, "beta": beta}, {}, {}
    for name in ("late", "before"):
        runs[name] = run = trainer(settings, name, model, num_passes=1, num_mini_batches=1)
        run._job.generator = run._job.generator if name == "late" else Another(run._job.generator)
        roles: list[str] = []
        run._job.model.register_forward_pre_hook(lambda _, inputs, roles=roles: roles.append(inputs[0]))
        run.train()
        counts[name] = roles.count("policy")
    assert counts == {"late": 4 + (2 if beta else 0), "before": 4 + 4 + 2}
    assert largest_difference(runs["late"], runs["before"]) < 1e-6
    for one, other in zip(lines_of(tmp_path / "late"), lines_of(tmp_path / "before"), strict=True):
        assert one.keys() == other.keys()
        for name in {"kl", "kl_response", "entropy", "eval/kl"} & one.keys():
            assert one[name] == pytest.approx(other[name], abs=1e-5)
