"""A model folder goes in; what it costs to run comes out: parameters, bytes, memory, prefill and decode. One model, in
a process of its own:

    echo '{"folder": "runs/student/model", ...}' | python -m scaleup.evaluation.speed

reads a Request as JSON and prints the measurement as JSON, on the last line of stdout. The folder is loaded by plain
Transformers, in the type of its files: what a user of the folder gets. A .gguf file is run by llama.cpp."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaleup.models.llama_cpp import peak_mib, served

WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class Request:
    folder: str
    task: str
    prompt_tokens: int
    new_tokens: int
    repeats: int
    compile: bool
    threads: int
    device: str
    trust_remote_code: bool = False


def measure_apart(request: Request) -> dict[str, Any]:
    """Measure in a process that does nothing else. Raises RuntimeError if that fails."""
    command = [sys.executable, "-m", "scaleup.evaluation.speed"]
    done = subprocess.run(
        command, input=json.dumps(asdict(request)), stdout=subprocess.PIPE, text=True, check=False, timeout=3600
    )
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(
            f"measuring {request.folder} failed with exit code {done.returncode}; its error stands above"
        )
    costs: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return costs


def faster(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the better of two measurements of one model, each speed by itself; of memory the most."""
    best = {**one, "peak_memory_mib": max(one["peak_memory_mib"], other["peak_memory_mib"])}
    for how in ("eager", "compiled"):
        if how not in one:
            continue
        best[how] = {
            key: value and (max if key.endswith("_per_second") else min)(value, other[how][key])
            for key, value in one[how].items()
        }
    return best


def measure(request: Request) -> dict[str, Any]:
    """Return parameters, bytes, memory and speed of the folder that a request names. Memory (MiB) is the peak on the
    device; on a CPU the process's peak above what it had before it loaded anything."""
    import torch
    import transformers  # noqa: F401  before the memory is looked at

    torch.set_num_threads(request.threads)
    if request.folder.endswith(".gguf"):
        return _measure_gguf(request)
    bare = peak_mib()
    began = time.perf_counter()
    model = _load(request)
    seconds = time.perf_counter() - began
    ids = torch.randint(3, model.config.get_text_config().vocab_size, (1, request.prompt_tokens), device=request.device)
    costs = sizes(model, Path(request.folder)) | {"load_seconds": seconds}
    costs["eager"] = timed(_Runner(model, ids, request.new_tokens), request.repeats)
    peak = torch.cuda.max_memory_allocated() / 2**20 if request.device == "cuda" else peak_mib() - bare
    costs["peak_memory_mib"] = peak
    if request.compile:
        costs["compiled"] = _compiled(model, ids, request)
    return costs


def _load(request: Request) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    autos = {
        "causal_lm": AutoModelForCausalLM,
        "seq2seq_lm": AutoModelForSeq2SeqLM,
        "sequence_classification": AutoModelForSequenceClassification,
    }
    model = autos[request.task].from_pretrained(
        request.folder, dtype="auto", trust_remote_code=request.trust_remote_code, use_safetensors=True
    )
    return model.eval().to(request.device)


def _measure_gguf(request: Request) -> dict[str, Any]:
    """Measure a GGUF file as `measure` does a folder: in llama.cpp, by its own clock."""
    from gguf import GGUFReader

    file = Path(request.folder)
    counts = {tensor.name: int(tensor.n_elements) for tensor in GGUFReader(file).tensors}
    tables = sum(counts.get(name, 0) for name in ("token_embd.weight", "output.weight"))
    total, size = sum(counts.values()), file.stat().st_size
    began = time.perf_counter()
    with served(file, request.prompt_tokens + request.new_tokens + 8, request.threads) as llama:
        seconds = time.perf_counter() - began
        ids = list(range(10, 10 + request.prompt_tokens))
        llama.timed(ids, request.new_tokens)
        rounds = [llama.timed(ids, request.new_tokens) for _ in range(request.repeats)]
        peak = llama.peak_mib()
    prefill, token = (
        statistics.median(each[key] for each in rounds) for key in ("prompt_ms", "predicted_per_token_ms")
    )
    return {
        "num_parameters": total,
        "num_non_embedding_parameters": total - tables,
        "bytes": size,
        "bits_per_parameter": 8 * size / total,
        "zeros": None,
        "load_seconds": seconds,
        "peak_memory_mib": peak,
        "eager": {
            "prefill_ms": prefill,
            "prefill_tokens_per_second": 1000 * request.prompt_tokens / prefill,
            "decode_tokens_per_second": 1000 / token,
        },
    }


def sizes(model: Any, folder: Path) -> dict[str, Any]:
    """Return the number of parameters in all and without the input and output embeddings; the bytes of the weights'
    files, and bits a parameter; the share of parameters that are zero."""
    parameters = dict(model.named_parameters())
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings = {id(table.weight): table.weight.numel() for table in tables if table is not None}
    total = sum(parameter.numel() for parameter in parameters.values())
    zeros = sum(_num_zeros(parameter) for parameter in parameters.values())
    size = sum(file.stat().st_size for file in folder.glob(WEIGHTS))
    return {
        "num_parameters": total,
        "num_non_embedding_parameters": total - sum(embeddings.values()),
        "bytes": size,
        "bits_per_parameter": 8 * size / total,
        "zeros": zeros / total,
    }


def _num_zeros(parameter: Any) -> int:
    data = parameter.detach()
    data = data.dequantize() if hasattr(data, "tensor_data_names") else data  # torchao's
    return int((data == 0).sum())


class _Runner:
    """Runs one sequence through a model: the prompt at once (prefill), then token by token with the cache (decode). A
    classifier has the prefill alone."""

    def __init__(self, model: Any, ids: Any, new_tokens: int, cache: Callable[[], Any] | None = None) -> None:
        self.model, self.ids, self.new_tokens, self.cache = model, ids, new_tokens, cache
        self.generates = model.config.architectures[0].find("SequenceClassification") < 0
        self.is_seq2seq = bool(model.config.is_encoder_decoder)

    def __call__(self) -> tuple[float, list[float]]:
        """Return the seconds of the prompt, and of each token that follows."""
        import torch

        with torch.no_grad():
            began = time.perf_counter()
            output = self.model(**self._first())
            token = self._likeliest(output)
            prefill = time.perf_counter() - began
            steps: list[float] = []
            for number in range(self.new_tokens - 1 if self.generates else 0):
                began = time.perf_counter()
                output = self.model(**self._next(token, output, number))
                token = self._likeliest(output)
                steps.append(time.perf_counter() - began)
        return prefill, steps

    def _first(self) -> dict[str, Any]:
        if not self.generates:
            return {"input_ids": self.ids}
        inputs: dict[str, Any] = {"input_ids": self.ids, "use_cache": True}
        if self.is_seq2seq:
            inputs["decoder_input_ids"] = self.ids.new_full((1, 1), self.model.config.decoder_start_token_id)
        else:
            inputs["logits_to_keep"] = 1
        if self.cache is not None:
            inputs |= {"past_key_values": self.cache(), "cache_position": self._places(0, self.ids.shape[1])}
        return inputs

    def _next(self, token: Any, output: Any, number: int) -> dict[str, Any]:
        inputs = {"past_key_values": output.past_key_values, "use_cache": True}
        if self.is_seq2seq:
            return inputs | {"encoder_outputs": (output.encoder_last_hidden_state,), "decoder_input_ids": token}
        if self.cache is not None:
            inputs["cache_position"] = self._places(self.ids.shape[1] + number, 1)
        return inputs | {"input_ids": token}

    def _places(self, first: int, count: int) -> Any:
        import torch

        return torch.arange(first, first + count, device=self.ids.device)

    def _likeliest(self, output: Any) -> Any:
        token = output.logits[:, -1:].argmax(dim=-1) if self.generates else output.logits.argmax(dim=-1)
        if token.is_cuda:
            token.cpu()  # waits for it
        return token


def timed(run: _Runner, repeats: int) -> dict[str, Any]:
    """Return medians over `repeats`, after a warm-up: tokens a second of prefill and decode; the latency of a generated
    token in ms at the 50th and 95th percentile."""
    run()
    rounds = [run() for _ in range(repeats)]
    prefill = statistics.median(first for first, _ in rounds)
    speeds: dict[str, Any] = {"prefill_ms": 1000 * prefill, "prefill_tokens_per_second": run.ids.shape[1] / prefill}
    steps = sorted(step for _, later in rounds for step in later)
    if steps:
        speeds["decode_tokens_per_second"] = 1 / statistics.median(sum(later) / len(later) for _, later in rounds)
        speeds |= {f"latency_p{share}_ms": 1000 * _percentile(steps, share) for share in (50, 95)}
    return speeds


def _percentile(ordered: list[float], share: int) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(share / 100 * len(ordered)) - 1)]


def _compiled(model: Any, ids: Any, request: Request) -> dict[str, Any]:
    """Time the model through torch.compile, with a static cache; return the error if that fails."""
    import torch
    from transformers import StaticCache

    try:
        runner = _Runner(model, ids, request.new_tokens)
        if runner.generates and not runner.is_seq2seq:
            length = request.prompt_tokens + request.new_tokens
            runner.cache = lambda: StaticCache(config=model.config, max_cache_len=length)
        runner.model = torch.compile(model, dynamic=False)
        began = time.perf_counter()
        runner()
        return {"compile_seconds": time.perf_counter() - began} | timed(runner, request.repeats)
    except Exception as error:  # compilers raise anything
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def main() -> None:
    """Answer stdin's request on stdout; whatever libraries print goes to stderr."""
    request: Mapping[str, Any] = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        costs = measure(Request(**request))
    print(json.dumps(costs))


if __name__ == "__main__":
    main()
