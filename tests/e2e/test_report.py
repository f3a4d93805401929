"""Reports through the command line, looked at in a real browser: on a phone, a tablet and a desk, light and dark."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scaleup.artifacts.files import read_json
from scaleup.artifacts.run_folder import RunFolder
from tests.cli import interrupt, reached, scaleup, start
from tests.pages import SCHEMES, SIZES, Page, visit
from tests.small_runs import SFT, write_rows
from tests.unit.runs.made import ended, made

if TYPE_CHECKING:
    from playwright.sync_api import Browser

EVIL = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
MAX_BYTES = 2_000_000


def check_in_browser(browser: Browser, file: Path, looks: Iterable[tuple[str, str]]) -> None:
    """It is right wherever it is opened: no errors, no barriers, no requests, and nothing to scroll sideways."""
    assert file.stat().st_size < MAX_BYTES
    address = file.as_uri()
    for look in looks:
        with visit(browser, address, *look) as seen:
            for each in seen.page.query_selector_all("summary"):
                each.click()
            assert seen.page.evaluate("document.documentElement.scrollWidth") == SIZES[look[0]][0], look
            assert seen.violations() == [], look
            assert (seen.said, seen.requests) == ([], [address]), look


def test_a_page_of_planted_runs(tmp_path: Path, browser: Browser) -> None:
    steps = [{"step": step, "loss": 9 / step, "grad_norm": 1.0, "memory_mib": 50.0 + step} for step in range(1, 60)]
    run = ended(made(tmp_path, "planted", metrics=steps), "finished")
    run.timelines.mkdir()
    for group, spans in {"policy": ("generation", "training"), "reward": ("scoring",)}.items():
        lines = [{"what": what, "start": place + 0.1, "end": place + 0.9} for place, what in enumerate(spans)]
        (run.timelines / f"{group}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (run.path / "samples").mkdir()
    rows = [{"prompt": EVIL, "response": "so " * 200, "score": 0.5}]
    (run.path / "samples/rollout-000000.json").write_text(json.dumps(rows))
    failed = ended(made(tmp_path, "failed", metrics=[{"step": 1, EVIL: 1.0}], parent=run.path), "failed", EVIL)
    result = scaleup("report", run.path, failed.path, cwd=tmp_path)
    assert (result.code, result.stdout, result.stderr) == (0, "report.html\n", "")
    check_in_browser(browser, tmp_path / "report.html", [("phone", "light"), ("desktop", "dark")])
    with visit(browser, (tmp_path / "report.html").as_uri()) as seen:
        assert seen.page.title() == "2 runs"
        assert seen.page.query_selector_all("script, main img") == []
        assert seen.page.locator("th", has_text=EVIL).count() >= 1
        seen.page.click("#run-1-numbers summary")
        seen.page.set_viewport_size({"width": 760, "height": 1000})
        seen.page.emulate_media(media="print")
        assert seen.page.locator("#run-1-numbers table").is_visible(), "what was opened is on paper"
        assert not seen.page.locator("#run-1-more figure").is_visible(), "what was not is not"
        assert seen.page.evaluate("document.documentElement.scrollWidth") == 760


def test_what_cannot_be_reported(tmp_path: Path) -> None:
    never = made(tmp_path, "never")
    result = scaleup("report", never.path, "nothing", "-o", "no/file.html", cwd=tmp_path)
    assert result.code == 2
    where = [line.split(": ")[1] for line in result.stderr.splitlines()]
    assert where == [str(never.path), "nothing", "--output"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the whole chain has been run."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "data").symlink_to(Path(__file__).resolve().parents[2] / "data")
    result = scaleup("demo", "--tiny", cwd=folder, timeout=900)
    assert result.code == 0, result.stdout + result.stderr
    assert result.stdout.endswith(f"{folder}/runs/demo-tiny-report.html\n")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo(demo: Path, browser: Browser) -> None:
    """It ends with a page whose numbers are the manifests'. Asked again, there is nothing to do."""
    file = demo / "runs/demo-tiny-report.html"
    page = Page(file.read_text())
    names = ("sft", "int8", "evaluate", "card", "reward", "ppo")
    assert [page.row(name)[0] for name in names] == ["finished"] * len(names)
    figures = read_json(demo / "runs/demo-tiny-evaluate/metrics.json")
    for metric in ("loss", "perplexity", "accuracy"):
        told = [float(cell.split(" [")[0].replace(",", "")) for cell in page.row(metric)]
        assert told == pytest.approx([figures[of][metric] for of in ("baseline", "sft", "int8")], rel=1e-3)
    for name in ("sft", "reward", "ppo"):
        manifest = RunFolder(demo / f"runs/demo-tiny-{name}").manifest()
        assert manifest is not None
        for key, value in manifest.metrics.items():
            if isinstance(value, int | float) and value is not None:
                shown = [float(row[1].replace(",", "")) for row in page.rows if row[:1] == [key] and len(row) == 2]
                assert any(abs(each - value) <= 1e-4 * max(1, abs(value)) for each in shown), f"{name}: {key}"
    assert any(row[:2] == ["reward", "scoring"] for row in page.rows)
    check_in_browser(browser, file, product(("phone", "tablet", "desktop"), SCHEMES))
    again = scaleup("demo", "--tiny", cwd=demo)
    assert (again.code, "nothing to do" in again.stdout) == (0, True), again.stdout
    elsewhere = scaleup("demo", "--tiny", cwd=demo / "runs")
    assert (elsewhere.code, elsewhere.stderr.startswith("error: demo: needs configs/pipelines")) == (2, True)


@pytest.mark.slow
def test_runs_that_were_measured_on_the_same_rows_are_compared(demo: Path) -> None:
    run = demo / "runs/demo-tiny-sft"
    measured = scaleup("evaluate", run, "evaluation.metrics=[perplexity]", cwd=demo)
    assert measured.code == 0, measured.stdout + measured.stderr
    shutil.copytree(run, demo / "runs/twin")
    result = scaleup("report", "runs/demo-tiny-sft", "runs/twin", "-o", "both.html", cwd=demo)
    assert (result.code, result.stdout) == (0, "both.html\n"), result.stderr
    page = Page((demo / "both.html").read_text())
    assert ["metric", "before", "demo-tiny-sft", "twin"] in page.rows
    figures = read_json(run / "evaluations/1/metrics.json")
    shown = next(row for row in page.rows if row[0] == "loss" and len(row) == 4)[1:]
    told = [float(cell.split(" [")[0]) for cell in shown]
    assert told == pytest.approx([figures[of]["loss"] for of in ("baseline", "model", "model")], rel=1e-3)


@pytest.mark.slow
def test_a_run_is_followed_until_it_is_stopped(tmp_path: Path, browser: Browser) -> None:
    write_rows(tmp_path)
    config = {**SFT, "name": "long", "train": {**SFT["train"], "max_steps": 100_000}}
    config["parallel"] = {"num_processes": 1, "strategy": "single"}

    def look(run: Any, folder: Path) -> None:
        with start("report", "runs/long", "--follow", cwd=tmp_path) as report:
            address = report.stdout.readline().split()[0]  # type: ignore[union-attr]
            with visit(browser, address, "phone") as seen:
                seen.page.click("#run-1-numbers summary")
                seen.page.evaluate("window.scrollTo(0, 700)")
                first = seen.page.locator("#run-1-numbers").inner_text()
                seen.page.wait_for_function(
                    "text => document.querySelector('#run-1-numbers').innerText !== text", arg=first, timeout=30_000
                )
                assert seen.page.evaluate("window.scrollY") == 700, "who reads on is not moved"
                assert seen.page.locator("#run-1-numbers table").is_visible(), "what was opened stays open"
                assert seen.violations() == []
                assert set(seen.requests) == {address}
                run.terminate()
                seen.page.wait_for_selector("main:not([data-live])", timeout=60_000)
                assert "stopped" in seen.page.locator("main").inner_text()
                assert seen.said == []
            rest, problems = report.communicate(timeout=60)
            assert (report.returncode, rest, problems) == (0, f"{folder.resolve() / 'report.html'}\n", "")

    assert interrupt(config, cwd=tmp_path, when=reached(3), do=look).code == 75
    assert (tmp_path / "runs/long/report.html").is_file()
