"""Text from a model, for prompts of the config or those of data.test."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.files import write_json
from scaleup.artifacts.run_folder import RunFolder
from scaleup.config.stages import GenerateConfig
from scaleup.data.sources import read_prompts
from scaleup.data.tokenization import Encoder
from scaleup.distributed.runtime import Runtime, seed_everything
from scaleup.evaluation.generation import generate_answers
from scaleup.evaluation.report import finish
from scaleup.models.adapted import each_adapter, load_finished
from scaleup.models.load import load_tokenizer
from scaleup.plan.types import Plan


def run(config: GenerateConfig, plan: Plan, runtime: Runtime, folder: RunFolder) -> None:
    prompts: list[str | list[dict[str, str]]] = list(config.generation.prompts or [])
    if not prompts:
        sources = config.data.test or []
        prompts = list(chain.from_iterable(read_prompts(config.data, source, "test") for source in sources))

    runtime.progress.report("loading the model")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_location or plan.model.location)
    model = load_finished(config.model, plan.model, config.quantization, config.mixed_precision, runtime.device)
    columns: Iterable[tuple[str, Any, PreTrainedTokenizerBase]] = [("completion", model, tokenizer)]
    if config.adapters:
        columns = each_adapter(model, config.model, plan.model, config.adapters)
    answers: dict[str, list[str]] = {}
    for name, network, own in columns:
        ids = Encoder(own, plan.model.task, config.data).prompt_ids(prompts)
        phase = f"generating with {name}" if config.adapters else "generating"
        seed_everything(runtime.rank)
        answers[name] = generate_answers(
            runtime, network, own, ids, config.generation, config.evaluation.batch_size, folder.path / ".parts", phase
        )

    if runtime.is_main:
        rows = [
            {"prompt": prompt} | {name: given[i] for name, given in answers.items()} for i, prompt in enumerate(prompts)
        ]
        write_json(folder.path / "generations.json", rows)
        finish(folder, config.stage, config.name, {"prompts": len(prompts)}, None)
    runtime.barrier()
