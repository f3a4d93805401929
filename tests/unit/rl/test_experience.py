"""What a rollout is turned into, and what is refused of it."""

from typing import Any

import pytest
import torch

from scaleup.config.stages.ppo import PPOSettings
from scaleup.data.prompts import Prompt
from scaleup.errors import ScaleupError
from scaleup.models.rollout import Responses
from scaleup.rl.algorithms import Estimates, algorithm_of
from scaleup.rl.checks import check_experience, check_first_ratio, check_steps, tolerance_of
from scaleup.rl.experience import Experience, by_length, compute_advantages, samples_of
from tests.unit.data import tiny

LENGTHS = torch.tensor([2, 3])
SCORES = torch.tensor([1.0, -4.0], dtype=torch.float64)


def experience(**changes: Any) -> Experience:
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    parts: dict[str, Any] = {
        "prompts": [Prompt([1], "a"), Prompt([2], "b")],
        "tokens": torch.tensor([[4, 2, 0], [5, 6, 7]]),
        "lengths": LENGTHS,
        "finished": torch.tensor([True, False]),
        "logprobs": zeros,
        "entropies": zeros,
        "values": zeros,
        "ref_logprobs": zeros,
        "by_source": {"reward": SCORES},
        "scores": SCORES,
    }
    return Experience(**{**parts, **changes})


def settings(**changes: Any) -> PPOSettings:
    return PPOSettings(num_rollouts=1, **{"whiten_advantages": False, "lam": 1.0, **changes})


def advantages_of(given: Experience, ppo: PPOSettings, kl_coef: float) -> Estimates:
    return compute_advantages(given, algorithm_of(ppo.algorithm), ppo.rollouts, [1.0], kl_coef)


def apart(by: float) -> torch.Tensor:
    return torch.tensor([[by, by, 0], [by, by, by]], dtype=torch.float64)


def test_scores_are_clipped_and_missing_ends_penalised() -> None:
    plain = advantages_of(experience(), settings(), 0.1)
    assert plain.returns[:, 0].tolist() == [1.0, -4.0]
    clipped = advantages_of(experience(), settings(reward_clip=2.0), 0.1)
    assert clipped.returns[:, 0].tolist() == [1.0, -2.0]
    penalised = advantages_of(experience(), settings(reward_clip=2.0, missing_eos_penalty=0.5), 0.1)
    assert penalised.returns[:, 0].tolist() == [1.0, -2.5]  # the second ran into its limit


def test_leaving_the_reference_costs() -> None:
    """k1 is the log-ratio itself, k3 is never negative; both are weighted and taken off at each token."""
    estimates = advantages_of(experience(logprobs=apart(0.3)), settings(), 0.1)
    assert estimates.returns[:, 0].tolist() == pytest.approx([1 - 2 * 0.03, -4 - 3 * 0.03])
    estimates = advantages_of(experience(ref_logprobs=apart(0.3)), settings(), 0.1)
    assert estimates.returns[:, 0].tolist() == pytest.approx([1 + 2 * 0.03, -4 + 3 * 0.03])
    estimates = advantages_of(experience(ref_logprobs=apart(0.3)), settings(kl_estimator="k3"), 0.1)
    assert estimates.returns[0, 0] < 1


def test_whitening() -> None:
    estimates = advantages_of(experience(), settings(whiten_advantages=True), 0.1)
    mask = experience().mask
    assert float(estimates.advantages[mask].mean()) == pytest.approx(0, abs=1e-12)
    assert float(estimates.advantages[mask].std()) == pytest.approx(1, abs=1e-6)
    assert estimates.returns[:, 0].tolist() == [1.0, -4.0]  # whitened after the returns were made
    scaled = advantages_of(experience(), settings(whiten_rewards=True), 0.1)
    assert scaled.returns[0, 0] != 1.0


def test_what_a_reward_model_reads() -> None:
    tokenizer = tiny.tokenizer("llama")
    a, c, e, x, y = tokenizer("acexy")["input_ids"]
    end = tokenizer.eos_token_id
    given = Responses(torch.tensor([[a, c, end], [e, a, a]]), torch.tensor([3, 1]), torch.tensor([True, False]))
    prompts = [Prompt([x], "x", {"k": 1}), Prompt([y], "y")]
    for is_seq2seq in (False, True):
        samples = samples_of(tokenizer, prompts, given, [end], is_seq2seq)
        assert [(s.prompt, s.response, s.finished, s.columns) for s in samples] == [
            ("x", "ac", True, {"k": 1}),
            ("y", "e", False, {}),
        ]


def test_batches_hold_each_row_once_and_like_lengths_together() -> None:
    prompts = [[0] * n for n in (5, 1, 9, 2)]
    batches = list(by_length(prompts, torch.tensor([1, 1, 1, 9]), 2))
    assert batches == [[1, 0], [2, 3]]


def checked(given: Experience, is_new: bool = False, **changes: Any) -> None:
    ppo = settings(kl_coef=0.0)
    estimates = advantages_of(given, ppo, 0.0)
    for name, value in changes.items():
        estimates = Estimates(**{**vars(estimates), name: value})
    check_experience(given, estimates, algorithm_of(ppo.algorithm), is_new, tolerance_of("no", None))


def test_a_sound_rollout_passes() -> None:
    checked(experience(), is_new=True)
    checked(experience(logprobs=apart(0.3), entropies=apart(1.0)))


def test_policy_and_reference_start_alike() -> None:
    with pytest.raises(ScaleupError, match=r"differ by 3\.00e-01 nats a token before the first step"):
        checked(experience(logprobs=apart(0.3)), is_new=True)


def test_entropies_are_not_negative() -> None:
    with pytest.raises(ScaleupError, match=r"an entropy is -1\.00e"):
        checked(experience(entropies=apart(-1.0)))


@pytest.mark.parametrize("name", ["logprobs", "values"])
def test_nothing_stands_behind_the_end(name: str) -> None:
    with pytest.raises(ScaleupError, match="non-zero values after the end of a response"):
        checked(experience(**{name: torch.ones(2, 3, dtype=torch.float64)}))


def test_the_score_stands_on_the_last_token() -> None:
    misplaced = torch.tensor([[1.0, 0, 0], [0, 0, -4.0]], dtype=torch.float64)
    with pytest.raises(ScaleupError, match="at another place than its response's last token"):
        checked(experience(), rewards=misplaced)


def test_ratios_and_steps() -> None:
    check_first_ratio(1e-6, tolerance_of("no", "4bit"))
    check_first_ratio(1e-2, tolerance_of("bf16", None))
    check_first_ratio(1e-2, tolerance_of("no", "8bit"))
    for log_ratio in (1e-2, float("nan")):
        with pytest.raises(ScaleupError, match=r"self_checks: before any step the ratio"):
            check_first_ratio(log_ratio, tolerance_of("no", None))
    check_steps(8, 8, False)
    check_steps(3, 8, True)
    with pytest.raises(ScaleupError, match="3 optimizer steps were taken, and 8"):
        check_steps(3, 8, False)
