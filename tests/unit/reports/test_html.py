"""Every text becomes a text of the page, and the page loads nothing."""

from __future__ import annotations

import base64
import hashlib
import re

from hypothesis import given
from hypothesis import strategies as st

from scaleup.reports.html import Html, Limits, details, join, page, section, shortened, table, tag
from tests.pages import Page

EVIL = "<script>alert(1)</script>\"'&"


@given(st.text(st.characters(exclude_categories=[]), max_size=40))
def test_a_text_is_never_markup(text: str) -> None:
    whole = page(text, [tag("p", text, title=text), table([text], [[text]], text)])
    parsed = Page(whole)
    parsed.text.encode()
    told = {name for name, _ in parsed.tags}
    assert told == {"html", "head", "meta", "link", "title", "style", "body", "p", "div", "table", "caption"} | (
        {"thead", "tbody", "tr", "th"} | (set() if text else {"td"})
    )
    shown = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", text)
    assert next(attributes["title"] for name, attributes in parsed.tags if name == "p") == shown


def test_parts_and_attributes() -> None:
    assert tag("a", EVIL, href=EVIL) == (
        '<a href="&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;">'
        "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;</a>"
    )
    assert tag("p", [Html("<b>"), None, ["&"]], class_="x", data_live=None, hidden=True) == (
        '<p class="x" hidden><b>&amp;</p>'
    )
    assert join("a", None, []) == "a"


def test_what_is_empty_is_left_out() -> None:
    assert section("title", None, []) == details("title", None, id_="x") == ""


def test_a_table_says_how_many_rows_it_shows() -> None:
    parsed = Page(table(["name", "value"], [[f"r{number}", "1"] for number in range(7)], "c", limit=3))
    assert [row[0] for row in parsed.rows] == ["name", "r0", "r1", "r2"]
    assert "3 of 7 rows" in parsed.text


def test_long_texts_say_how_much_is_left_out() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("x" * 2003, 3) == "xxx … (2,000 more letters)"


def test_limits_end() -> None:
    limits = Limits()
    for _ in range(20):
        limits = limits.halved()
    assert limits == limits.halved()
    assert limits.points == 2


def test_its_policy_lets_nothing_in_but_its_own_style_and_script() -> None:
    for script in ("", "1"):
        text = page("t", "b", script)
        ((policy,),) = ([each["content"] for _, each in Page(text).tags if each.get("http-equiv")],)
        assert policy is not None
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert rules.pop("style-src") == f"'sha256-{digest}'"
        assert rules.pop("script-src", "none").startswith("'sha256-" if script else "none")
        assert rules.pop("connect-src", "none") == ("'self'" if script else "none")
        assert rules == {
            "default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"
        }  # fmt: skip
        assert set(re.findall(r"https?://[^&\"' ]+", text)) == {"http://www.w3.org/2000/svg"}, (
            "a name of SVG's, not asked"
        )
