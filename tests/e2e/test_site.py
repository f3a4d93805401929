"""The documentation as a site: it builds without a warning, and works in a browser, from a folder, with no network."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import REPOSITORY
from tests.pages import visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="needs scaleup[docs]")


def build(folder: Path, config: Path = REPOSITORY / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


def test_no_page_loads_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 80
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(
            r"<(?:script|img|iframe|source|object)\b[^>]*?\b(?:src|data)=[\"']?(?:https?:)?//[^>]*>", text
        )
        styles = [link for link in re.findall(r"<link\b[^>]*>", text) if re.search(r"href=[\"']?(?:https?:)?//", link)]
        assert (loaded, styles) == ([], []), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_links_that_leave_the_folder_of_pages_lead_on(site: Path) -> None:
    guide = (site / "guide.html").read_text(encoding="utf-8")
    assert 'href="benchmarks/reviews.html"' in guide, "a page from beside docs/"
    start = (site / "start.html").read_text(encoding="utf-8")
    assert 'href="stages/sft.html"' in start and 'src="images/report.png"' in start, "its links are turned too"
    assert 'href="https://github.com/scaleup-ml/scaleup/blob/main/examples/ppo.py"' in start


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# One\n\n[gone](gone.md)\n", encoding="utf-8")
    text = re.sub(r"^nav:\n.*", "", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.M | re.S)
    text = text.replace("hooks: [scripts/site_hook.py]\n", "")
    (tmp_path / "mkdocs.yml").write_text(text, encoding="utf-8")
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode == 1 and "gone.md" in done.stderr


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("num_generations", "stages/rl.html"),
        ("heartbeat", "design/hung-ranks.html"),
        ("safetensors", "guide.html"),
        ("kubernetes", "clusters.html"),
        ("intervals", "stages/evaluate.html"),
    ],
)
def test_the_search_index_holds_words(site: Path, words: str, place: str) -> None:
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    found = {each["location"].partition("#")[0] for each in index["docs"] if words in each["text"].lower()}
    assert place in found


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "laptop"])
def test_pages_fit_and_are_quiet(site: Path, browser: Browser, size: str) -> None:
    pages = (
        "index",
        "start",
        "guide",
        "config",
        "compatibility",
        "algorithms",
        "concepts",
        "benchmarks/ladder",
        "design/two-planes",
    )
    for name in pages:
        with visit(browser, (site / f"{name}.html").as_uri(), size) as seen:
            widths = seen.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
            assert widths[0] <= widths[1], name
            assert seen.said == [], name
            assert not [each for each in seen.requests if each.startswith("http")], name
            broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
            assert seen.page.evaluate(broken) == [], name


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "laptop"])
def test_a_search_finds_its_page_from_a_folder(site: Path, browser: Browser, size: str) -> None:
    with visit(browser, (site / "index.html").as_uri(), size) as seen:
        if size == "small":
            seen.page.click("label.md-header__button[for=__search]")
        else:
            seen.page.click(".md-search__input")
        seen.page.locator(".md-search__input").press_sequentially("hung ranks")
        first = seen.page.locator(".md-search-result__link").first
        first.wait_for(timeout=20_000)
        assert "hung-ranks.html" in (first.get_attribute("href") or "")
        first.click()
        seen.page.wait_for_url("**/hung-ranks.html*")
        assert (seen.said, [each for each in seen.requests if each.startswith("http")]) == ([], [])
