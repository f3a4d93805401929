"""An engine without vLLM: it loads the folders that a policy writes and draws by Transformers, for tests of everything
around. As a script it takes the command line with which an agent starts an engine."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from scaleup.artifacts.bridge_file import BridgeFile
from scaleup.distributed.heartbeat import Heartbeat
from scaleup.generator.engine import main
from scaleup.generator.messages import Answer, Request, Weights
from scaleup.generator.serving import Tell, alive, join, serve
from scaleup.generator.wire import ConnectionLost


class StandIn:
    """Draws one response after another. `keeps_head`: as a build of vLLM that packs the output head when it loads does,
    it goes on with the first weights' head."""

    def __init__(self, keeps_head: bool = False) -> None:
        self.keeps_head = keeps_head
        self.versions: list[int] = []
        self.asked: list[Request] = []
        self.model: Any = None
        self.head: torch.Tensor | None = None

    def draw(self, request: Request, tell: Tell) -> Answer:
        from scaleup.models.gumbel import draw

        self.asked.append(request)
        with alive(tell):
            self._load(request.weights)
        tokens: list[list[int]] = []
        logprobs: list[list[float]] = []
        for prompt, seed, limit in zip(request.prompts, request.seeds, request.limits, strict=True):
            ids: list[int] = []
            told: list[float] = []
            while len(ids) < limit and not set(ids[-1:]) & set(request.eos_ids):
                with torch.no_grad():
                    scores = self.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[:, -1].float()
                seeds, place = torch.tensor([int(seed)]), torch.tensor([len(ids)])
                chosen = scores.argmax() if request.is_greedy else draw(scores, seeds, place, request.temperature)
                ids.append(int(chosen))
                told.append(float((scores / request.temperature).log_softmax(-1)[0, ids[-1]]))
            tokens.append(ids)
            logprobs.append(told)
            tell(len(tokens))
        return Answer(tokens, logprobs)

    def _load(self, weights: Weights) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        if self.versions[-1:] == [weights.version]:
            return
        self.versions.append(weights.version)
        self.model = AutoModelForCausalLM.from_pretrained(weights.folder).eval()
        if weights.adapter is not None:
            self.model = PeftModel.from_pretrained(self.model, weights.adapter).eval()
        if self.keeps_head:
            head = self.model.get_output_embeddings()
            self.head = head.weight.detach().clone() if self.head is None else self.head
            head.weight = torch.nn.Parameter(self.head)


def in_a_thread(drawer: Any, port: int, secret: str) -> None:
    """Starts an engine that ends with its policy."""

    def run() -> None:
        with suppress(ConnectionLost):
            serve(join(BridgeFile("127.0.0.1", port, secret), 5), drawer, Heartbeat())

    threading.Thread(target=run, daemon=True).start()


def stand_in_python(folder: Path) -> Path:
    """Makes what a plan takes for the Python of an environment with vLLM, and returns it: it starts this engine."""
    registry = folder / "lib" / "python3.11" / "site-packages" / "vllm" / "model_executor" / "models" / "registry.py"
    registry.parent.mkdir(parents=True)
    registry.write_text('MODELS = {\n    "LlamaForCausalLM": ("llama",),\n    "Qwen2ForCausalLM": ("qwen2",),\n}\n')
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).absolute()} "$@"\n')
    python.chmod(0o755)
    return python


if __name__ == "__main__":
    del sys.argv[1:3]  # -m scaleup.generator.engine
    main(lambda settings: StandIn())
