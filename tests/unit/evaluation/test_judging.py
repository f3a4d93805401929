"""A judge's preference is that of its probabilities, in whichever order the responses stand; what it adds to an option
by itself does not count, and is told."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from scaleup.config.data import DataConfig
from scaleup.config.stages.judge import JudgementSettings
from scaleup.data.tokenization import Encoder
from scaleup.evaluation import judging
from scaleup.evaluation.judging import Judge, Judgements
from scaleup.records.constitution import DEFAULT
from scaleup.records.preferences import Preference
from scaleup.stages.judge import preferred_rows
from scaleup.train.token_head import swap_token_head
from tests.unit.data import tiny

PAIRS = [Preference("Q?", "yes", "no"), Preference("Why?", "so it is", "x" * 9), Preference("Q?", "a", "b")]
PRINCIPLE = DEFAULT.principles[0]


def asked(pairs):
    return [DEFAULT.questions(pair, PRINCIPLE) for pair in pairs]


def judgements(preference, bias):
    """Of a judge who finds the first response so much better, and adds so much to the first option."""
    preference, bias = np.asarray(preference, float), np.asarray(bias, float)
    towards_first_option = np.stack([preference + bias, -preference + bias], axis=1)
    return Judgements(np.stack([towards_first_option, np.zeros_like(towards_first_option)], axis=2) - 3.0)


def test_what_the_judge_adds_to_an_option_cancels_out():
    found = judgements([2.0, -0.5, 0.1], [0.0, 4.0, -7.0])
    assert found.log_odds == pytest.approx([2.0, -0.5, 0.1])
    assert found.probability == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(0.5)), 1 / (1 + np.exp(-0.1))])
    assert found.order_decides.tolist() == [0, 1, 1], "where the habit is stronger than the preference"


def test_figures_are_means_over_pairs_that_were_asked():
    found = judgements([2.0, -0.5, 0.1, np.nan], [1.0, 4.0, -7.0, np.nan])
    figures = found.figures(is_known=True)
    assert figures["order_decides"] == pytest.approx(2 / 3) and figures["agreement"] == pytest.approx(2 / 3)
    assert figures["first_option"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert figures["first_option_log_odds"] == pytest.approx((1 + 4 - 7) / 3)
    assert figures["confidence"] == pytest.approx(np.mean(1 / (1 + np.exp([-2, -0.5, -0.1]))))
    low, high = figures["order_decides_interval"]
    assert low == 0 and high == 1 and "agreement" not in found.figures(is_known=False)
    assert judgements([np.nan], [np.nan]).figures(is_known=True) == {}


def judge(runtime, name, folder, max_length=400, as_chat=False):
    model, tokenizer = tiny.model(name).eval(), tiny.tokenizer(name)
    data = DataConfig(max_length=max_length, too_long="drop")
    collate = tiny.collator(name, model)
    swap_token_head(model)
    encoder = Encoder(tokenizer, tiny.facts(name).task, data)
    return Judge(runtime, model, encoder, collate, ("A", "B"), as_chat, 4, folder)


@torch.no_grad()
def by_hand(name, question, options=("A", "B")):
    """The log-probabilities that a plain model gives the first token of each option behind a question."""
    model, tokenizer = tiny.model(name).eval(), tiny.tokenizer(name)
    ids = torch.tensor([tokenizer(question)["input_ids"]])
    logps = model(input_ids=ids).logits[0, -1].log_softmax(-1)
    return [float(logps[tokenizer(option, add_special_tokens=False)["input_ids"][0]]) for option in options]


def test_log_probabilities_are_those_of_the_options_in_both_orders(runtime, tmp_path):
    found = judge(runtime, "gpt2", tmp_path)(asked(PAIRS))
    for number, questions in enumerate(asked(PAIRS)):
        for place, question in enumerate(questions):
            assert found.logps[number, place] == pytest.approx(by_hand("gpt2", question), abs=1e-4)


def test_swapped_responses_are_judged_the_other_way_round(runtime, tmp_path):
    swapped = [Preference(pair.prompt, pair.rejected, pair.chosen) for pair in PAIRS]
    for name in ("gpt2", "bart"):
        one = judge(runtime, name, tmp_path / "one")(asked(PAIRS))
        other = judge(runtime, name, tmp_path / "other")(asked(swapped))
        assert one.log_odds == pytest.approx(-other.log_odds, abs=1e-6) and abs(one.log_odds).max() > 1e-5


def test_questions_that_are_too_long_are_left_out_whole(runtime, tmp_path):
    longest = len(tiny.tokenizer("gpt2")(asked(PAIRS)[1][0])["input_ids"])
    found = judge(runtime, "gpt2", tmp_path, max_length=longest)(asked(PAIRS))
    assert np.isnan(found.log_odds).tolist() == [False, True, False]


def test_what_was_judged_is_not_asked_again(runtime, tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "BLOCK", 2)
    parts = tmp_path / "parts"
    whole = judge(runtime, "gpt2", parts)(asked(PAIRS))
    files = sorted(parts.iterdir())
    assert len(files) == 2
    files[1].unlink()
    rows_asked = []
    monkeypatch.setattr(judging, "of_rows", lambda *rows: rows_asked.append(len(rows[2])) or np.zeros(len(rows[2])))
    again = judge(runtime, "gpt2", parts)(asked(PAIRS))
    assert rows_asked == [4], "of the last pair alone: two orders of two options"
    assert np.array_equal(again.logps[:2], whole.logps[:2])
    judge(runtime, "gpt2", parts)(asked([*PAIRS[:2], Preference("Q?", "other", "b")]))
    assert rows_asked == [4, 4], "and of other responses"


def written(judged, **settings):
    """The rows that a judge's pairs become, and what is left out."""
    left_out, number = Counter(), len(judged.log_odds)
    pairs = [Preference(f"{at}?", f"one {at}", f"other {at}") for at in range(number)]
    rows = preferred_rows(pairs, [PRINCIPLE] * number, judged, JudgementSettings(**settings), left_out)
    return list(rows), left_out


def test_rows_are_those_that_the_judge_prefers():
    judged = judgements([2.0, -0.5, 0.0, np.nan], [0.0, 4.0, 0.0, np.nan])
    rows, left_out = written(judged)
    assert [(row["id"], row["chosen"], row["rejected"]) for row in rows] == [
        (0, "one 0", "other 0"),
        (1, "other 1", "one 1"),
    ]
    assert [row["probability"] for row in rows] == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-0.5))])
    assert [row["order_decides"] for row in rows] == [False, True] and left_out == {"undecided": 1, "too_long": 1}
    rows, left_out = written(judged, drop_order_decided=True)
    assert [row["id"] for row in rows] == [0] and left_out == {"order_decided": 2, "too_long": 1}


def test_sampled_labels_are_drawn_by_the_probability():
    rows, _ = written(judgements(np.full(2000, np.log(3.0)), np.zeros(2000)), labels="sampled")
    share = sum(row["chosen"].startswith("one") for row in rows) / len(rows)
    assert (
        share == pytest.approx(0.75, abs=0.04)
        and rows != written(judgements(np.full(2000, np.log(3.0)), np.zeros(2000)), labels="sampled", seed=1)[0]
    )
    assert {round(row["probability"], 6) for row in rows} == {0.75, 0.25}
