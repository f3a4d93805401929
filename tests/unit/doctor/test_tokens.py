"""Pad and eos: what is said of each case, and of which models."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaleup.artifacts.run_folder import RunFolder
from scaleup.doctor.tokens import pad_and_eos, token_findings
from tests.unit.launcher.plans import plan_of

FACTS = plan_of(RunFolder(Path("/runs/x"))).model


@pytest.mark.parametrize(
    ("pad", "eos", "level", "said"),
    [
        ("<pad>", "</s>", "ok", "pad '<pad>', eos '</s>', a chat template"),
        ("</s>", "</s>", "warn", "pad and eos are both '</s>': masks come from positions"),
        (None, "</s>", "warn", "no pad token (eos '</s>'): batches are filled with eos"),
        ("<pad>", None, "warn", "nothing ends a completion"),
        (None, None, "warn", "no eos token"),
    ],
)
def test_each_case(pad: str | None, eos: str | None, level: str, said: str) -> None:
    found = pad_and_eos("model", FACTS.model_copy(update={"pad_token": pad, "eos_token": eos}))
    assert found.level == level and said in found.what
    assert bool(found.remedy) == (level == "warn")


def test_a_classifier_needs_no_eos() -> None:
    tokens = {"pad_token": "[PAD]", "eos_token": None, "has_chat_template": False}
    reads = FACTS.model_copy(update={"task": "sequence_classification", **tokens})
    assert pad_and_eos("model", reads).what == "pad '[PAD]', eos None, no chat template"


def test_every_model_of_the_plan_is_looked_at() -> None:
    plan = plan_of(RunFolder(Path("/runs/x")))
    other = FACTS.model_copy(update={"pad_token": "</s>"})
    found = list(token_findings(plan.model_copy(update={"models": {"teacher": other, "reward.model": FACTS}})))
    assert [(each.name, each.level) for each in found] == [
        ("tokenizer of model", "ok"),
        ("tokenizer of teacher", "warn"),
        ("tokenizer of reward.model", "ok"),
    ]


def test_notes_on_the_rows_are_passed_on() -> None:
    """And those on anything else are not: the plan has said them."""
    notes = ["data.train.0: the chat template ends no turn -> data.chat_template", "auto chose ddp"]
    plan = plan_of(RunFolder(Path("/runs/x"))).model_copy(update={"notes": notes})
    *_, last = token_findings(plan)
    assert (last.name, last.level, last.remedy) == ("rows", "warn", "data.chat_template")
    assert last.what == "data.train.0: the chat template ends no turn"
    assert [each.name for each in token_findings(plan)].count("rows") == 1
