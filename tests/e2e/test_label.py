"""`scaleup label` on a real page in a real browser, in a real terminal, and by several labellers."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli import scaleup, start

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROMPTS: list[Any] = [
    "Say something of the sea.\nKeep it short.",
    "What is 2 + 2?",
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "My <b>cat</b> is ill."}],
    "Name a colour.",
]
ANSWERS = {
    "quiet": ["Wide and blue.", "4", "I am sorry. Shall we find a vet?", "red"],
    "loud": ["SEA SEA SEA", "It is 4.", "<img src=x onerror=document.title='pwned'>", "red"],
    "odd": ["", "\x1b[31m5", "<script>document.title='pwned'</script>", "red"],
}


def write_answers(folder: Path, *models: str) -> list[str]:
    """Writes generations of some models as `stage: generate` does. Returns the files' names."""
    for model in models:
        rows = [{"id": at, "prompt": prompt, "completion": ANSWERS[model][at]} for at, prompt in enumerate(PROMPTS)]
        (folder / f"{model}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"{model}.jsonl" for model in models]


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@contextmanager
def served(*arguments: str, cwd: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yields the address of a page; its process has ended afterwards."""
    with start("label", *arguments, cwd=cwd) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("label at http://127.0.0.1:"), process.communicate(timeout=30)
            yield line.removeprefix("label at ").strip(), process
            process.wait(30)
        finally:
            process.kill()


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """Yields a page that is at an address. Nothing may have gone wrong in its console, and nothing may have been asked
    of another place."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(15_000)
    errors: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.wait_for_selector("article")
    yield page
    context.close()
    origin = url.partition("#")[0]
    assert errors == [] and all(each.startswith(origin) or each.startswith("data:") for each in asked)


def press(page: Page, keys: Sequence[str], until: str) -> None:
    """Presses keys one after another, and waits until the page says how many are decided."""
    for key in keys:
        page.keyboard.press(key)
    wait_for(page, "#progress", until)


def wait_for(page: Page, place: str, text: str) -> None:
    page.locator(place, has_text=text).first.wait_for()


def answers_on(page: Page) -> list[str]:
    return [each.inner_text() for each in page.query_selector_all("article .text")]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Path:
    """A folder in which one labeller judged three prompts in a browser, in two sessions."""
    folder = tmp_path_factory.mktemp("labelled")
    files = write_answers(folder, "quiet", "loud", "odd")
    with served(*files, "-o", "out", "--labeller", "ann", cwd=folder) as (url, process), opened(browser, url) as page:
        assert page.inner_text("#prompt") == PROMPTS[0]
        shown = answers_on(page)
        assert sorted(shown) == sorted(["Wide and blue.", "SEA SEA SEA", "(nothing)"])
        press(page, [str(shown.index("Wide and blue.") + 1)], "1 of 3")
        wait_for(page, "#prompt", "2 + 2")
        shown = answers_on(page)
        press(page, ["r", *(str(shown.index(each) + 1) for each in ("4", "It is 4."))], "1 of 3")
        page.keyboard.press("Enter")
        press(page, [], "2 of 3")
        wait_for(page, "#prompt", "cat")
        press(page, ["n"], "3 of 3")
        press(page, ["u"], "2 of 3")
        assert "My <b>cat</b> is ill." in page.inner_text("#prompt")
        assert "<script>document.title='pwned'</script>" in answers_on(page)
        assert page.title() == "Which answer is better?"
        process.send_signal(signal.SIGKILL)
    log = folder / "out/labels-ann.jsonl"
    with log.open("a") as file:
        file.write('{"id": 2, "kind": "tie", "ra')  # as a crash leaves it
    with served("out", "--labeller", "ann", cwd=folder) as (url, process), opened(browser, url) as page:
        assert page.inner_text("#progress") == "2 of 3 decided by ann" and "cat" in page.inner_text("#prompt")
        page.keyboard.press("ArrowLeft")
        wait_for(page, "article.best", "4")
        assert page.inner_text("article.best .text") == "4"
        page.keyboard.press("ArrowRight")
        wait_for(page, "#prompt", "cat")
        press(page, ["t"], "3 of 3")
        wait_for(page, "#message", "All 3")
        page.keyboard.press("q")
        wait_for(page, "#message", "Thank you")
        assert process.wait(30) == 0
    return folder


def test_a_browser_labels_and_goes_on_where_it_was_killed(labelled: Path) -> None:
    log = rows_of(labelled / "out/labels-ann.jsonl")
    assert [line.get("kind", "undo") for line in log] == ["choice", "ranking", "neither", "undo", "tie"]
    assert log[0]["ranks"] == [1, 2, 2] and log[1]["ranks"] == [1, 2, 3], "in the order of the files"
    pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows_of(labelled / "out/pairs.jsonl")]
    assert pairs == [
        (PROMPTS[0], "Wide and blue.", "SEA SEA SEA"),
        (PROMPTS[0], "Wide and blue.", ""),
        (PROMPTS[1], "4", "It is 4."),
        (PROMPTS[1], "4", "\x1b[31m5"),
        (PROMPTS[1], "It is 4.", "\x1b[31m5"),
    ]


@pytest.mark.slow
def test_the_page_fits_and_is_accessible(tmp_path: Path, browser: Browser) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    files = write_answers(tmp_path, "quiet", "loud")
    with served(*files, "-o", "out", cwd=tmp_path) as (url, process):
        for (width, height), scheme in product([(390, 844), (1440, 900)], ["light", "dark"]):
            # The page's policy lets no other script in: what the check itself brings must pass by it.
            screen = {"viewport": {"width": width, "height": height}, "color_scheme": scheme, "bypass_csp": True}
            with opened(browser, url, **screen) as page:
                for keys in (["ArrowLeft"], ["r", "2"]):
                    press(page, keys, "0 of 3")
                    found = axe.Axe().run(page)
                    assert found.violations_count == 0, found.generate_report()
                    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                if place := os.environ.get("SCREENSHOTS"):
                    page.screenshot(path=f"{place}/label-{scheme}-{width}.png")
        with opened(browser, url) as page:
            page.click("text=Finish")
            assert process.wait(30) == 0


def test_a_terminal_labels_by_the_same_keys(tmp_path: Path) -> None:
    files = write_answers(tmp_path, "quiet", "loud", "odd")
    command = [sys.executable, "-m", "scaleup.cli", "label", *files, "-o", "out", "--labeller", "ann", "--terminal"]
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execve(command[0], command, {**os.environ, "TERM": "xterm", "COLUMNS": "160"})
    try:
        screen = read_until(terminal, "q finish")  # the last of what is shown
        assert "0 of 3 decided" in screen and "Wide and blue." in screen and "quiet" not in screen
        for keys, until in [("1", "1 of 3 decided"), ("r2", "leave"), ("=1", "leave"), ("3", "2 of 3 decided")]:
            os.write(terminal, keys.encode())
            screen = read_until(terminal, until)
        for keys, until in [("n", "3 of 3 decided"), ("u", "2 of 3 decided"), ("\x1b[D", "decided: ranking")]:
            os.write(terminal, keys.encode())
            screen = read_until(terminal, until)
        assert "\x1b[31m5" not in screen, "what a model wrote is shown and not obeyed"
        os.write(terminal, b"q")
        assert "1 left" in read_until(terminal, "win rate")
    except BaseException:
        os.kill(process, signal.SIGKILL)  # it would wait for keys
        raise
    finally:
        _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    first, second, *_ = rows_of(tmp_path / "out/labels-ann.jsonl")
    assert first["kind"] == "choice" and first["ranks"][first["shown"][0]] == 1
    assert second["kind"] == "ranking" and [second["ranks"][number] for number in second["shown"]] == [1, 1, 2]


def read_until(terminal: int, wanted: str, timeout: float = 90.0) -> str:
    """Returns what a terminal shows up to some words."""
    text, deadline = "", time.monotonic() + timeout
    while wanted not in text:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{wanted!r} did not come: {text}"
        text += os.read(terminal, 1 << 16).decode(errors="replace")
    return text


def test_two_labellers_agree(tmp_path: Path) -> None:
    files = write_answers(tmp_path, "quiet", "loud")
    for labeller, keys in {"ann": "\x1b[Cttq", "ben": "\x1b[Ctnq"}.items():
        with subprocess.Popen(
            [sys.executable, "-m", "scaleup.cli", "label", *files, "-o", "out", "--labeller", labeller, "--terminal"],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        ) as process:
            process.communicate(keys, timeout=90)
            assert process.returncode == 0
    # What a program wrote: both prefer the quiet answer to the first prompt.
    for labeller in ("ann", "ben"):
        with (tmp_path / f"out/labels-{labeller}.jsonl").open("a") as file:
            file.write(json.dumps({"id": 0, "kind": "choice", "ranks": [1, 2], "shown": [0, 1]}) + "\n")
    told = json.loads(scaleup("label", "--agreement", "out", "--json", cwd=tmp_path).stdout)
    assert told["labellers"] == {"ann": 3, "ben": 3}
    assert told["pairs"] == 1 and told["left_out"] == {"no majority": 1, "tie": 1}
    (agreed,) = told["agreement"]
    # p_o = 2/3; p_e = (2/3 x 1/3 + 1/3 x 1/3) of ties and the quiet model: 1/3
    assert agreed["num_items"] == 3 and agreed["kappa"] == pytest.approx(1 / 2)
    assert {each["model"]: each["won"] for each in told["models"]} == {"quiet.jsonl": 2, "loud.jsonl": 0}
    (row,) = rows_of(tmp_path / "out/pairs.jsonl")
    assert row["prompt"] == PROMPTS[0] and row["chosen"] == ANSWERS["quiet"][0] and row["margin"] == 1


def test_mistakes_are_told_at_once(tmp_path: Path) -> None:
    write_answers(tmp_path, "quiet")
    refused = scaleup("label", "quiet.jsonl", "nowhere.jsonl", "--labeller", "../ann", cwd=tmp_path)
    assert refused.code == 2 and [line.partition(" -> ")[0] for line in refused.stderr.splitlines()] == [
        "error: --labeller: '../ann' is no name of a file",
        "error: --output: is not set",
        "error: nowhere.jsonl: does not exist",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["quiet.jsonl"]
    refused = scaleup("label", "--agreement", ".", "-o", "out", "--terminal", cwd=tmp_path)
    assert refused.code == 2 and [line.partition(" -> ")[0] for line in refused.stderr.splitlines()] == [
        "error: --output: is of labelling, not of --agreement",
        "error: --terminal: is of labelling, not of --agreement",
    ]
