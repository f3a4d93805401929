"""Kappa is what the papers and scikit-learn say; pairs are what most labellers prefer, and what the stages read."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaleup.config.data import DataConfig
from scaleup.labelling.agreement import (
    agreements,
    cohen_kappa,
    first_shown_share,
    fleiss_kappa,
    majority_pairs,
    standings,
)
from scaleup.labelling.items import ItemSet
from scaleup.records.chats import Chat
from scaleup.records.preferences import Preference, preference_maker
from scaleup.records.recognition import recognised
from tests.unit.labelling.made import decision, items, said

# The worked example of Fleiss' kappa: 14 raters, 10 subjects, 5 categories.
FLEISS = """0 0 0 0 14
0 2 6 4 2
0 0 3 5 6
0 3 9 2 0
2 2 8 1 1
7 7 0 0 0
3 2 6 3 0
2 5 3 2 2
6 5 2 1 0
0 2 2 3 7"""


def test_fleiss_kappa_of_the_worked_example() -> None:
    counts = [list(map(int, line.split())) for line in FLEISS.splitlines()]
    ratings = [[str(kind) for kind, count in enumerate(row) for _ in range(count)] for row in counts]
    assert fleiss_kappa(ratings) == pytest.approx(0.2099, abs=5e-5)


def test_cohen_kappa_of_the_worked_example() -> None:
    table = {("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}
    ratings = [pair for pair, count in table.items() for _ in range(count)]
    assert cohen_kappa(ratings) == pytest.approx(0.4)


@pytest.mark.slow  # for its import
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=40))
def test_cohen_kappa_is_that_of_scikit_learn(ratings: list[tuple[str, str]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    ours = cohen_kappa(ratings)
    if ours is None:
        assert len({word for row in ratings for word in row}) == 1
    else:
        assert ours == pytest.approx(metrics.cohen_kappa_score(*zip(*ratings, strict=True)))


def test_no_kappa_where_there_is_no_chance_to_disagree() -> None:
    assert cohen_kappa([]) is fleiss_kappa([]) is None
    assert cohen_kappa([["a", "a"]]) is fleiss_kappa([["a", "a", "a"]]) is None
    assert fleiss_kappa([["a", "a", "a"], ["b", "b", "b"]]) == 1


def test_agreement_is_of_the_items_that_all_decided() -> None:
    labels = {"ann": said("0", "1", "tie", "0"), "ben": said("0", "1", "neither", ""), "cleo": said("0", "0", "tie")}
    everyone, *twos = agreements(items(4).items, labels)
    assert everyone.labellers == ("ann", "ben", "cleo") and everyone.num_items == 3
    ratings = [["m0"] * 3, ["m1", "m1", "m0"], ["tie", "neither", "tie"]]
    assert everyone.kappa == fleiss_kappa(ratings) and everyone.observed == pytest.approx(1 / 3)
    assert [each.labellers for each in twos] == [("ann", "ben"), ("ann", "cleo"), ("ben", "cleo")]
    assert twos[0].kappa == cohen_kappa([row[:2] for row in ratings]) and twos[0].observed == pytest.approx(2 / 3)
    assert agreements(items(4).items, {"ann": said("0")}) == []


def test_the_interval_holds_the_kappa_of_many_labellers_who_copy_one_in_four_times() -> None:
    draw = random.Random(1)
    first = [draw.choice(["0", "1", "tie"]) for _ in range(400)]
    second = [word if draw.random() < 0.25 else draw.choice(["0", "1", "tie"]) for word in first]
    (agreed,) = agreements(items(400).items, {"ann": said(*first), "ben": said(*second)})
    assert agreed.interval is not None and agreed.interval[0] < 0.25 < agreed.interval[1]
    assert 0.1 < agreed.interval[1] - agreed.interval[0] < 0.2


def test_pairs_are_those_of_a_majority() -> None:
    labels = {
        "ann": said("0", "0", "tie", "neither", "0", ""),
        "ben": said("0", "1", "tie", "neither", "tie", ""),
        "cleo": said("1", "", "0", "", "", ""),
    }
    pairs = majority_pairs(items(6), labels)
    assert [(row["id"], row["chosen"], row["rejected"], row["labellers"]) for row in pairs.rows] == [
        (0, "answer 0", "answer 1", 3)
    ]
    assert pairs.rows[0]["margin"] == pytest.approx(1 / 3) and pairs.rows[0]["chosen_by"] == ["m0"]
    assert pairs.left_out == Counter({"no majority": 2, "tie": 1, "neither": 1, "not decided": 1})


def test_a_choice_among_three_says_nothing_of_the_others_and_a_ranking_does() -> None:
    three = items(2, 3)
    labels = {
        "ann": {
            0: decision(0, "choice", (2, 1, 2), (0, 1, 2)),
            1: decision(1, "ranking", (2, 1, 2), (2, 1, 0)),
        }
    }
    pairs = majority_pairs(three, labels)
    assert [(row["id"], row["chosen_by"], row["rejected_by"]) for row in pairs.rows] == [
        (0, ["m1"], ["m0"]),
        (0, ["m1"], ["m2"]),
        (1, ["m1"], ["m0"]),
        (1, ["m1"], ["m2"]),
    ]
    assert pairs.left_out == Counter({"not compared": 1, "tie": 1})
    assert [(each.model, each.won, each.tied, each.lost, each.win_rate) for each in standings(three, labels)] == [
        ("m0", 0, 1, 2, pytest.approx(1 / 6)),
        ("m1", 4, 0, 0, 1.0),
        ("m2", 0, 1, 2, pytest.approx(1 / 6)),
    ]


def test_how_often_the_first_shown_was_chosen() -> None:
    labels = {
        "ann": {
            0: decision(0, "choice", (1, 2), (0, 1)),
            1: decision(1, "choice", (1, 2), (1, 0)),
            2: decision(2, "tie", (1, 1), (0, 1)),
        },
        "ben": {0: decision(0, "ranking", (2, 1), (1, 0)), 1: decision(1, "choice", (2, 1), (1, 0))},
    }
    assert first_shown_share(items(3), labels) == pytest.approx(3 / 4)
    assert first_shown_share(items(3), {"ann": said("tie")}) is None


def test_pairs_are_read_as_preferences_by_their_columns(tmp_path: Path) -> None:
    made = items(2)
    chat = [{"role": "user", "content": "hello"}]
    talked = replace(made.items[1], prompt=chat, tools=[{"name": "f"}])
    pairs = majority_pairs(ItemSet(0, (made.items[0], talked)), {"ann": said("0", "1")})
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs.rows))
    plain = DataConfig.model_validate({"train": str(file)})
    found = recognised(plain, plain.train[0])
    assert found is not None and found.kind == "preferences" and found.columns == "prompt, chosen, rejected"
    form = {key: value for key, value in found.form.model_dump().items() if value is not None}
    data = DataConfig.model_validate({"train": str(file), **form, "margin": "margin"})
    read = preference_maker(data, data.train[0])
    first, second = (read(row, at).pairs[0] for at, row in enumerate(pairs.rows))
    assert first == Preference("prompt 0", "answer 0", "answer 1", 1.0)
    assert isinstance(second.prompt, Chat) and second.prompt.messages == chat and second.prompt.tools == [{"name": "f"}]
    assert second.chosen == [{"role": "assistant", "content": "answer 1"}]
