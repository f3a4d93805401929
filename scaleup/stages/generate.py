"""Prompts of the config or of data.test go in; what a model, or each of its adapters, writes for them comes out, in
generations.jsonl."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

from scaleup.artifacts.files import write_text
from scaleup.config.stages.generate import GenerateConfig
from scaleup.data.few_shot import asked_prompts, asked_rows
from scaleup.data.tokenization import Encoder
from scaleup.distributed.runtime import seed_everything
from scaleup.models.adapted import each_adapter, load_finished
from scaleup.models.generation import Generator
from scaleup.models.load import load_tokenizer
from scaleup.records.chats import Chat, as_written
from scaleup.records.examples import Opening
from scaleup.train.job import Job


def run(job: Job[GenerateConfig]) -> None:
    config, plan, runtime = job.config, job.plan, job.runtime
    prompts = asked_prompts(config.data, config.generation.prompts or [])
    if not prompts:
        prompts = [row.prompt for row in asked_rows(config.data, "test", False) if isinstance(row, Opening)]

    runtime.progress.report("loading the model")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    model = load_finished(config.model, plan.model, config.quantization, config.mixed_precision, runtime.device)
    columns: Iterable[tuple[str, Any, PreTrainedTokenizerBase]] = [("completion", model, tokenizer)]
    if config.adapters:
        columns = each_adapter(model, config.model, plan.model, config.adapters)
    answers: dict[str, list[list[str]]] = {}
    num_truncated = 0
    for name, network, own in columns:
        phase = f"generating with {name}" if config.adapters else "generating"
        seed_everything(runtime.rank)
        generator = Generator(
            runtime, network, own, config.generation, config.evaluation.batch_size, job.parts, keeps=True
        )
        encoder = Encoder(own, plan.model.task, config.data)
        ids = encoder.prompt_ids(prompts, generator.most_tokens)
        num_truncated = max(num_truncated, encoder.truncated["prompts"])
        answers[name] = generator.sequences(ids, phase)

    if runtime.is_main:
        rows = [_row(number, prompt, answers, config) for number, prompt in enumerate(prompts)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(job.folder.path / "generations.jsonl", text)
        shutil.rmtree(job.parts, ignore_errors=True)
        job.finish({"prompts": len(prompts)} | ({"prompts_truncated": num_truncated} if num_truncated else {}))
    runtime.barrier()


def _row(
    number: int, prompt: str | Chat, answers: dict[str, list[list[str]]], config: GenerateConfig
) -> dict[str, Any]:
    """Returns a prompt with its completion, or what each adapter wrote; a list where several answers are asked for."""
    several = config.generation.num_return_sequences > 1
    columns = {name: texts[number] if several else texts[number][0] for name, texts in answers.items()}
    if several and not config.adapters:
        columns = {"completions": columns["completion"]}
    return {"id": number} | as_written(prompt) | columns
