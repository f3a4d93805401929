"""What a reward model cannot be trained from, and what cannot give rewards."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from scaleup.config.reward_source import RewardSource
from scaleup.errors import ScaleupError
from scaleup.plan.facts import ModelFacts
from scaleup.plan.scorers import reward_model_problems
from scaleup.plan.types import Plan

REWARD = {"stage": "reward", "data.text": None, "data.chosen": "{text}", "data.rejected": "not {text}"}


@pytest.fixture
def scored(facts: ModelFacts, tmp_path: Path) -> ModelFacts:
    return facts.model_copy(
        update={
            "task": "sequence_classification",
            "pooling": "last",
            "architecture": "LlamaForSequenceClassification",
            "labels": ("LABEL_0",),
            "location": str(tmp_path),
        }
    )


def lines(facts: ModelFacts, **source: object) -> list[str]:
    scorer = RewardSource.model_validate({"model": {"path": "x"}, **source}).scorer
    return [str(problem) for problem in reward_model_problems(scorer, facts)]


def refused(plan: Callable[..., Plan], changes: dict[str, object], facts: ModelFacts) -> list[str]:
    with pytest.raises(ScaleupError) as caught:
        plan({**REWARD, **changes}, facts=facts)
    return [f"{problem.where}: {problem.what}" for problem in caught.value.problems]


def test_a_reward_run_is_planned_by_pairs(plan: Callable[..., Plan], scored: ModelFacts, folder: Path) -> None:
    rows = [{"answers": ["a", "b", "c"], "stars": [1, 2, 2]}, {"answers": ["a", "a"], "stars": [1, 2]}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    form = {"data.chosen": None, "data.rejected": None, "data.completions": "answers", "data.ratings": "stars"}
    epochs = {"train.max_steps": None, "train.num_train_epochs": 3, "train.per_device_train_batch_size": 2}
    found = plan({**REWARD, **form, **epochs}, facts=scored)
    assert found.batch is not None
    assert (found.batch.num_train_rows, found.batch.num_steps) == (2, 3)
    assert "rows.jsonl: pairs left out: 1 equal, 1 tied" in found.notes


def test_a_file_without_preferences(plan: Callable[..., Plan], scored: ModelFacts, folder: Path) -> None:
    (folder / "rows.jsonl").write_text(json.dumps({"good": "a", "bad": "a"}) + "\n")
    changes = {"data.chosen": "{good}", "data.rejected": "{bad}"}
    assert refused(plan, changes, scored) == [
        f"data.train.0.path: '{folder}/rows.jsonl' holds no pair in which one response is preferred (1 equal)"
    ]


def test_rows_of_the_other_kind(plan: Callable[..., Plan], scored: ModelFacts) -> None:
    assert refused(plan, {"stage": "sft"}, scored)[-1].startswith("data.chosen: is of preferences, which stage sft")
    changes = {"data.chosen": None, "data.rejected": None, "data.text": "{text}"}
    assert refused(plan, changes, scored) == ["data.text: says nothing of which response is preferred"]


def test_what_has_no_meaning_for_pairs(plan: Callable[..., Plan], scored: ModelFacts) -> None:
    changes = {"data.packing": True, "model.task": "causal_lm", "reward.template": "{answer}"}
    assert [line.partition(":")[0] for line in refused(plan, changes, scored)] == [
        "model.task",
        "data.packing",
        "reward.template",
        "reward.template",
    ]


def test_a_classifier_of_several_labels_is_no_reward_model(plan: Callable[..., Plan], scored: ModelFacts) -> None:
    several = scored.model_copy(update={"labels": ("bad", "good")})
    [line] = refused(plan, {}, several)
    assert line == "model.path: is a classifier of 2 labels (bad, good), a reward model has one"


def test_a_reward_model_writes_nothing(plan: Callable[..., Plan], scored: ModelFacts) -> None:
    changes = {"stage": "generate", "generation.prompts": ["a"], "train": None}
    [line] = refused(plan, changes, scored)
    assert line.startswith("model.path: is a sequence classifier (LlamaForSequenceClassification): it scores texts")


def test_what_gives_rewards(scored: ModelFacts) -> None:
    assert lines(scored) == []
    assert lines(scored, label="LABEL_0", score="probability", max_length=512) == []


def test_labels(scored: ModelFacts) -> None:
    several = scored.model_copy(update={"labels": ("nothate", "hate")})
    assert lines(several, label="nothate") == []
    assert lines(several, label="nohate") == [
        "reward.label: 'nohate' is no label of reward.model -> did you mean 'nothate'?"
    ]
    assert lines(several) == [
        "reward.label: is needed: reward.model has 2 labels -> name the one that is rewarded: nothate, hate"
    ]


def test_numbers_are_no_probabilities(scored: ModelFacts) -> None:
    rating = scored.model_copy(update={"problem": "regression"})
    assert lines(rating) == []
    [line] = lines(rating, score="probability")
    assert line.startswith("reward.model.path: gives numbers (regression), which are no probabilities")


def test_what_gives_none(scored: ModelFacts, facts: ModelFacts) -> None:
    headless = scored.model_copy(update={"labels": ()})
    for found in (headless, facts):
        [line] = lines(found)
        assert line.endswith("has no head that scores texts -> name a finished reward run, or a sequence classifier")
    assert lines(scored, template="{prompt}", max_length=513) == [
        "reward.template: does not hold {response}: all responses would score the same -> write {response} into it",
        "reward.max_length: 513 tokens are more than the 512 that reward.model has positions for -> use at most 512",
    ]


def test_what_a_run_saved(scored: ModelFacts, tmp_path: Path) -> None:
    (tmp_path / "reward.json").write_text(json.dumps({"mean": 1.0, "std": 2.0}))
    assert lines(scored) == []
    [line] = lines(scored, score="probability")
    assert line.startswith("reward.score: is probability, and the mean and spread in reward.json are those of a logit")
    assert lines(scored, score="probability", normalize=False) == []
    (tmp_path / "reward.json").write_text("{")
    [line] = lines(scored)
    assert line.startswith(f"{tmp_path}/reward.json: cannot be read")
