"""Standard streams that fail: what a process does goes on, and ends as it would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CODE = """
import os, sys
from scaleup.streams import steady_streams
with steady_streams():
    for number in range(5000):
        print("a line of stdout")
        print("a line of stderr: \\u2192 \\udcff", file=sys.stderr)
    assert sys.stdin.read() == ""
    os.fstat(0), os.fstat(1), os.fstat(2)
    assert open(__file__).fileno() > 2
    sys.stdout.flush()
sys.exit(7)
"""
ASKS = """
import os, sys
from scaleup.streams import steady_streams, unwritten
with steady_streams():
    print("a line of stdout")
    why = unwritten()
    print("more")
sys.exit(os.strerror(28) == why)
"""


def code_of(tmp_path: Path, prepare: Callable[[], object], *options: str, **streams: object) -> int:
    """The exit code of a process that prints much."""
    file = tmp_path / "prints.py"
    file.write_text(CODE)
    command = [sys.executable, *options, str(file)]
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **streams}
    return subprocess.Popen(command, preexec_fn=prepare, **given).wait(60)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_closed_streams(closed: tuple[int, ...], tmp_path: Path) -> None:
    assert code_of(tmp_path, lambda: [os.close(descriptor) for descriptor in closed]) == 7


@pytest.mark.parametrize("options", [(), ("-u",)])
def test_a_reader_that_is_gone(options: tuple[str, ...], tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        assert code_of(tmp_path, lambda: None, *options, stdout=pipe, stderr=pipe) == 7


def test_a_full_disk(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        assert code_of(tmp_path, lambda: None, stdout=full, stderr=full) == 7


@pytest.mark.parametrize(("place", "is_lost"), [("/dev/full", 1), ("/dev/null", 0)])
def test_what_a_disk_did_not_take_can_be_asked_for(place: str, is_lost: int) -> None:
    with Path(place).open("wb") as stdout:
        assert subprocess.run([sys.executable, "-c", ASKS], stdout=stdout, check=False).returncode == is_lost


def test_a_reader_that_is_gone_wanted_no_more() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        assert subprocess.run([sys.executable, "-c", ASKS], stdout=pipe, check=False).returncode == 0


@pytest.mark.parametrize("is_read", [True, False])
def test_whether_anybody_reads(is_read: bool) -> None:
    read, write = os.pipe()
    if not is_read:
        os.close(read)
    code = "import sys; from scaleup.streams import reader_is_gone; sys.exit(reader_is_gone())"
    with os.fdopen(write, "wb") as pipe:
        assert subprocess.run([sys.executable, "-c", code], stdout=pipe, check=False).returncode == (not is_read)
    if is_read:
        os.close(read)


def test_a_pipe_that_does_not_block_loses_nothing(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    file = tmp_path / "prints.py"
    file.write_text(CODE)
    process = subprocess.Popen(
        [sys.executable, file], stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.DEVNULL
    )
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert len(pipe.read().splitlines()) == 5000
    assert process.wait(60) == 7


def test_letters_that_the_encoding_lacks_are_written_as_escapes(tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text(CODE)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, tmp_path / "prints.py"]
    done = subprocess.run(command, input=b"", capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr.splitlines()[0]) == (7, b"a line of stderr: \\u2192 \\udcff")
