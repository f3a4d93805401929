"""Prompts of the config or of data.test go in; what a model, or each of its adapters, writes for them comes out."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.files import write_json
from scaleup.config.stages.generate import GenerateConfig
from scaleup.data.sources import read_prompts
from scaleup.data.tokenization import Encoder
from scaleup.distributed.runtime import seed_everything
from scaleup.models.adapted import each_adapter, load_finished
from scaleup.models.generation import Generator
from scaleup.models.load import load_tokenizer
from scaleup.records.chats import Chat, as_written
from scaleup.train.job import Job


def run(job: Job[GenerateConfig]) -> None:
    config, plan, runtime = job.config, job.plan, job.runtime
    prompts: list[str | Chat] = list(config.generation.prompts or [])
    if not prompts:
        sources = config.data.test or []
        prompts = list(chain.from_iterable(read_prompts(config.data, source, "test") for source in sources))

    runtime.progress.report("loading the model")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    model = load_finished(config.model, plan.model, config.quantization, config.mixed_precision, runtime.device)
    columns: Iterable[tuple[str, Any, PreTrainedTokenizerBase]] = [("completion", model, tokenizer)]
    if config.adapters:
        columns = each_adapter(model, config.model, plan.model, config.adapters)
    answers: dict[str, list[str]] = {}
    for name, network, own in columns:
        ids = Encoder(own, plan.model.task, config.data).prompt_ids(prompts)
        phase = f"generating with {name}" if config.adapters else "generating"
        seed_everything(runtime.rank)
        size = config.evaluation.batch_size
        answers[name] = Generator(runtime, network, own, config.generation, size, job.parts).answers(ids, phase)

    if runtime.is_main:
        rows = [
            as_written(prompt) | {name: texts[i] for name, texts in answers.items()} for i, prompt in enumerate(prompts)
        ]
        write_json(job.folder.path / "generations.json", rows)
        job.finish({"prompts": len(prompts)})
    runtime.barrier()
