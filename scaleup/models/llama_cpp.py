"""A GGUF file in llama.cpp, on the CPU."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaleup.errors import ScaleupError

SECONDS = 60.0


@dataclass(frozen=True)
class Served:
    """A file in llama.cpp's server, on an address of this machine."""

    server: Any

    def tokens(self, text: str) -> list[int]:
        """With the special tokens that begin a text, and those that it names."""
        asked = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize", asked, {"Content-Type": "application/json"}
        )
        plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
        with plain.open(request, timeout=SECONDS) as answer:
            return list(json.load(answer)["tokens"])

    def continued(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """The greedy continuation, an end token included."""
        answer = self._asked(ids, num_tokens, n_probs=1)
        return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]

    def timed(self, ids: Sequence[int], num_tokens: int) -> dict[str, float]:
        """llama.cpp's own times of prompt and continuation, which no end token cuts short: `prompt_ms`,
        `predicted_per_token_ms` and others."""
        times: dict[str, float] = self._asked(ids, num_tokens, ignore_eos=True)["timings"]
        return times

    def _asked(self, ids: Sequence[int], num_tokens: int, **more: Any) -> dict[str, Any]:
        asked = {"prompt": list(ids), "n_predict": num_tokens, "temperature": 0, "cache_prompt": False, **more}
        answer = self.server.handle_completions(asked)
        found: dict[str, Any] = json.loads(answer) if isinstance(answer, str | bytes) else answer
        return found


@contextmanager
def served(file: Path, num_context: int, num_threads: int) -> Iterator[Served]:
    """Raises ScaleupError for a file that llama.cpp does not read."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = num_context, 1, 0
    params.warmup, params.verbosity, params.fit_params = False, 0, False
    params.cpuparams.n_threads = num_threads
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        raise ScaleupError.of(str(file), f"llama.cpp cannot read it: {error}", "export it anew") from error
    yield Served(server)
    del server  # it ends with its last name
