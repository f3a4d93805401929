"""Shared by all tests: no model hub, one thread, wide tables; runs that go on two at a time; one process that
looks at models; texts that must stay as they are."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.describer import Describer
from tests.golden import Golden

if TYPE_CHECKING:
    from playwright.sync_api import Browser

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # runs at once share the cores: who waits must not spin
os.environ["COLUMNS"] = "200"
# Under nohup (and some CI) it is ignored, here and in every run that a test starts.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# CI must fail for what changed, not for what chance found: there, properties are tried on the same examples each time
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60)
settings.register_profile("here", deadline=None, max_examples=60)
settings.load_profile("ci" if os.environ.get("CI") else "here")

REPOSITORY = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-goldens", action="store_true", help="Write tests/goldens instead of comparing with it.")


def pytest_collection_finish() -> None:
    """The garbage collector need not look at libraries and tests again: its full collections took a quarter second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compares texts with those of tests/goldens."""
    return Golden(request.config.getoption("--write-goldens"))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    """Starts a module's runs, two at a time; what has not begun when the module ends never does."""
    with ThreadPoolExecutor(2) as executor:
        yield executor
        executor.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def describer() -> Iterator[Describer]:
    """Answers a module's questions about models, for tests that put its `run` in the place of subprocess.run."""
    describer = Describer()
    yield describer
    describer.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium: Debian's, since a machine may reach package registries alone. Of a module and no longer, as
    there is a loop of asyncio in this thread meanwhile."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium: make browser")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
