"""This module runs a GGUF file in llama.cpp, on the CPU, in a process of its own:

    python -m scaleup.models.llama_cpp FILE CONTEXT THREADS

which answers a JSON request a line on stdin by a line on stdout. It ends without taking its server down, which may wait
for itself forever: xllamacpp joins a thread whose loop began after it had been told to stop."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleup.errors import ScaleupError

SECONDS = 300.0
"""Bounds the time for an answer, the first of which comes when the file is read."""


@dataclass(frozen=True)
class Served:
    """Holds a running llama.cpp process with its file, and sends it requests."""

    process: subprocess.Popen[str]
    file: Path

    def tokens(self, text: str) -> list[int]:
        """Returns the token ids of a text: with the special tokens that begin a text, and those that it names."""
        ids: list[int] = self._request("tokens", text)
        return ids

    def continued(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """Returns the greedy continuation of token ids, an end token included."""
        answer = self._request("completion", {"prompt": list(ids), "n_predict": num_tokens, "n_probs": 1})
        return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]

    def timed(self, ids: Sequence[int], num_tokens: int) -> dict[str, float]:
        """Returns llama.cpp's own times of prompt and continuation, which no end token cuts short: `prompt_ms`,
        `predicted_per_token_ms` and others."""
        answer = self._request("completion", {"prompt": list(ids), "n_predict": num_tokens, "ignore_eos": True})
        times: dict[str, float] = answer["timings"]
        return times

    def peak_mib(self) -> float:
        """Returns the process's peak memory in MiB, above what it had before it read the file."""
        peak: float = self._request("peak", None)
        return peak

    def _request(self, method: str, argument: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, argument]) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> Any:
        """Returns the next line of the process, decoded. Raises ScaleupError when there is none."""
        stdout = self.process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], SECONDS)
        line = stdout.readline() if ready else ""
        if not line:
            what = f"llama.cpp gives no answer within {SECONDS:g} s" if not ready else "llama.cpp cannot read it"
            raise ScaleupError.of(str(self.file), what, "export it anew")
        return json.loads(line)


@contextmanager
def served(file: Path, num_context: int, num_threads: int) -> Iterator[Served]:
    """Runs llama.cpp on a file for as long as the context is open. Raises ScaleupError for a file that llama.cpp does
    not read."""
    command = [sys.executable, "-m", "scaleup.models.llama_cpp", str(file), str(num_context), str(num_threads)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            llama = Served(process, file)
            llama.answer()  # that it is ready
            yield llama
        finally:
            process.kill()


def peak_mib() -> float:
    """Returns the peak resident memory of this process so far in MiB, by Linux's own account: getrusage counts what the
    parent had when it forked."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def main() -> None:
    """Answers requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever llama.cpp prints goes to stderr
    import xllamacpp

    file, num_context, num_threads = sys.argv[1:]
    bare = peak_mib()
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.n_gpu_layers = int(num_context), 1, 0
    params.warmup, params.verbosity, params.fit_params = False, 0, False
    params.cpuparams.n_threads = int(num_threads)
    server = xllamacpp.Server(params)
    answers.write("true\n")
    for line in sys.stdin:
        method, argument = json.loads(line)
        if method == "tokens":
            answer: Any = _tokens(server.listening_address, argument)
        elif method == "peak":
            answer = peak_mib() - bare
        else:
            answer = server.handle_completions({"temperature": 0, "cache_prompt": False, **argument})
            answer = json.loads(answer) if isinstance(answer, str | bytes) else answer
        answers.write(json.dumps(answer) + "\n")
    os._exit(0)


def _tokens(address: str, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
    request = urllib.request.Request(f"{address}/tokenize", body, {"Content-Type": "application/json"})
    plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
    with plain.open(request, timeout=SECONDS) as answer:
        return list(json.load(answer)["tokens"])


if __name__ == "__main__":
    main()
