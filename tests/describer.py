"""What `python -m scaleup.describe.answer` says, from a child of a process that has imported everything already: a
moment for each question instead of the ten seconds that torch and transformers take.

For tests that plan many configs. What it is asked and what it answers goes through files, as with the real one."""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, Popen, run
from tempfile import TemporaryFile
from typing import Any

REPOSITORY = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "scaleup.describe.answer"]
TIMEOUT = 120.0
"""For one question, and for the imports where it is the first."""
LONGEST = 2**17
"""Of a message: a folder and an environment."""


class Describer:
    """Its process starts with the first question, and keeps what libraries read of the environment as they are
    imported; all else of the environment, the folder and stderr are those of whoever asks."""

    def __init__(self) -> None:
        self._process: Popen[bytes] | None = None
        self._line: socket.socket | None = None

    def run(self, command: Sequence[str], **options: Any) -> CompletedProcess[str]:
        """In place of subprocess.run, to which every other command goes."""
        if command != COMMAND:
            return run(command, **options)
        question, environment = options.pop("input"), options.pop("env", os.environ)
        stderr = options.pop("stderr", 2)
        assert options == {"stdout": PIPE, "text": True, "check": False}, "asked in a way that has no stand-in"
        return CompletedProcess(command, *self._answer(question, environment, stderr))

    def close(self) -> None:
        """The kernel tells what it forked."""
        if self._process is not None and self._line is not None:
            self._line.close()
            self._process.kill()
            self._process.wait()
            self._process = self._line = None

    def _answer(self, question: str, environment: Mapping[str, str], stderr: int) -> tuple[int, str]:
        """Exit code and stdout. Raises AssertionError, and starts anew when asked again, if there is no answer."""
        line = self._line or self._start()
        message = json.dumps({"folder": str(Path.cwd()), "environment": dict(environment)}).encode()
        with TemporaryFile("w+") as asked, TemporaryFile("w+") as said:
            asked.write(question)
            asked.seek(0)
            try:
                socket.send_fds(line, [message], [asked.fileno(), said.fileno(), stderr])
                code = line.recv(LONGEST)
            except TimeoutError:
                self.close()
                raise AssertionError(f"no answer within {TIMEOUT} s to {question}") from None
            except OSError:
                code = b""
            if not code:
                self.close()
                raise AssertionError("the process that answers has ended; its error stands above")
            said.seek(0)
            return int(code), said.read()

    def _start(self) -> socket.socket:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.settimeout(TIMEOUT)
        with theirs:
            end = theirs.fileno()
            command = [sys.executable, "-m", "tests.describer", str(end)]
            self._process = Popen(command, cwd=REPOSITORY, stdin=DEVNULL, stdout=DEVNULL, pass_fds=[end])
        return self._line


def main() -> None:
    """A child for each question, until there is nobody left who could ask."""
    gc.disable()  # as the real one does
    from scaleup.distributed.signals import stop_with_parent
    from scaleup.models.load import quiet_libraries
    from tests.forked import be_ready_to_fork, start_child, wait_for

    stop_with_parent()
    quiet_libraries()
    be_ready_to_fork()
    with socket.socket(fileno=int(sys.argv[1])) as line:
        while True:
            message, files, *_ = socket.recv_fds(line, LONGEST, 3)
            if not message:
                return
            child = start_child(partial(be_the_real_one, json.loads(message), files), Path(os.devnull))
            for file in files:
                os.close(file)
            line.send(str(wait_for([child])[0]).encode())


def be_the_real_one(asker: Mapping[str, Any], files: Sequence[int]) -> None:
    """In a process of its own: what the real one does in the asker's folder and environment, with these as stdin,
    stdout and stderr."""
    from scaleup.describe import answer
    from scaleup.distributed.signals import stop_with_parent

    stop_with_parent()
    for stream, file in enumerate(files):
        os.dup2(file, stream)
    os.chdir(asker["folder"])
    sys.path[0] = asker["folder"]
    os.environ.clear()
    os.environ.update(asker["environment"])
    answer.main()


if __name__ == "__main__":
    main()
