"""Pictures of what was made from what."""

from __future__ import annotations

import re

from scaleup.reports.page.graph import Arrow, Node, graph, layers
from tests.pages import Page


def test_each_stands_behind_all_of_its_parents() -> None:
    parents = {"a": [], "b": ["a"], "c": [], "d": ["b", "c"]}
    assert layers(parents) == [["a", "c"], ["b"], ["d"]]


def test_arrows_lead_from_box_to_box() -> None:
    columns = [{"a": Node("a", "sft", "good")}, {"b": Node("<b>", "ppo")}]
    picture = graph(columns, [Arrow("a", "b", "model"), Arrow("a", "b", "data.train.0")], "Lineage")
    wide, upright = picture.split("</svg>")[:2]
    for drawn, from_, to in ((wide, (154, 27), (274, 27)), (upright, (79, 50), (79, 110))):
        ((x, y, end),) = re.findall(r'd="M([\d.]+),([\d.]+)C.*? ([\d.]+,[\d.]+)"', drawn)
        assert (float(x), float(y)) == from_
        end_x, end_y = map(float, end.split(","))
        assert (to[0] - end_x) + (to[1] - end_y) == 5, "the head of the arrow is left"
    page = Page(picture)
    assert "<b>" in page.text
    assert "model, data.train.0" in page.text
