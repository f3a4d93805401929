"""This module draws by vLLM: a request's weights are loaded where they are not yet, and its prompts answered, all
together, by vLLM's own scheduling.

Nothing of a draw is vLLM's but the logits: `sampler` chooses the tokens."""

from __future__ import annotations

import os
from typing import Any

from scaleup.generator.messages import Answer, Request, Weights
from scaleup.generator.serving import Tell, alive

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine is this process: it ends with it
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other groups are on these cores too
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class VLLMDrawer:
    """Draws by vLLM, which is started with the first weights."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Import vLLM. `settings` is what the plan says of the engine: dtype, max_model_len, max_num_seqs,
        tensor_parallel_size, gpu_memory_utilization, kv_cache_gib, max_lora_rank (None: no adapter)."""
        os.environ.update(ENVIRONMENT)
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(settings["kv_cache_gib"])
        import vllm  # noqa: F401

        self._settings = settings
        self._llm: Any = None
        self._version: int | None = None
        self._adapter: Any = None

    def draw(self, request: Request, tell: Tell) -> Answer:
        """Return a response to each prompt, after loading the weights that the request names."""
        with alive(tell):
            self._load(request.weights)
        engine = self._llm.llm_engine
        for row, prompt in enumerate(request.prompts):
            engine.add_request(
                str(row), {"prompt_token_ids": list(prompt)}, _params(request, row), lora_request=self._adapter
            )
        tokens: dict[int, list[int]] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    tokens[int(output.request_id)] = list(output.outputs[0].token_ids)
            tell(len(tokens))
        kept = self._llm.collective_rpc("take_logprobs")[0]
        rows = [tokens[row] for row in range(len(request.prompts))]
        logprobs = [kept[row][: len(ids)] if row in kept else [0.0] * len(ids) for row, ids in enumerate(rows)]
        return Answer(rows, logprobs)

    def _load(self, weights: Weights) -> None:
        if self._llm is None:
            self._llm = self._started(weights.folder)
        elif weights.version != self._version and weights.adapter is None:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": weights.folder})
        if weights.version != self._version and weights.adapter is not None:
            from vllm.lora.request import LoRARequest

            self._adapter = LoRARequest(f"policy-{weights.version}", weights.version + 1, weights.adapter)
        self._version = weights.version

    def _started(self, folder: str) -> Any:
        from vllm import LLM

        settings, rank = self._settings, self._settings["max_lora_rank"]
        return LLM(
            model=folder,
            skip_tokenizer_init=True,
            dtype=settings["dtype"],
            max_model_len=settings["max_model_len"],
            max_num_seqs=settings["max_num_seqs"],
            tensor_parallel_size=settings["tensor_parallel_size"],
            gpu_memory_utilization=settings["gpu_memory_utilization"],
            generation_config="vllm",  # nothing of a model's own settings
            enable_prefix_caching=False,  # of earlier weights
            enforce_eager=settings["device"] == "cpu",
            async_scheduling=False,
            logits_processors=["scaleup.generator.sampler:GumbelSampler"],
            worker_extension_cls="scaleup.generator.sampler.LogprobsTaken",
            **({} if rank is None else {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1}),
        )


def _params(request: Request, row: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    own = {"row": row, "seed": int(request.seeds[row]), "temperature": request.temperature}
    return SamplingParams(
        temperature=0.0,
        max_tokens=int(request.limits[row]),
        stop_token_ids=list(request.eos_ids),
        ignore_eos=True,  # those of the request are all there are
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=None if request.is_greedy else own,
    )
