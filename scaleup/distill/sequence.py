"""This module lets a teacher write training rows: it reads the prompts of data.train and writes the teacher's own
answers to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scaleup.artifacts.data_file import models_known_at
from scaleup.artifacts.files import read_json, write_json, write_text
from scaleup.config.data import SourceConfig
from scaleup.config.stages.distill import DistillConfig
from scaleup.data.sources import read_prompts
from scaleup.data.tokenization import Encoder, own_template
from scaleup.distributed.runtime import seed_everything
from scaleup.models.adapted import load_finished
from scaleup.models.generation import Generator
from scaleup.models.load import load_tokenizer
from scaleup.records.chats import Chat
from scaleup.train.job import Job

INDEX = "index.json"


def with_written_rows(job: Job[DistillConfig]) -> Job[DistillConfig]:
    """Returns the job with what the teacher wrote in place of each source of data.train. It is written once for these
    prompts and models, to the run folder: a run that goes on reads it again. Empty answers make no row. Every rank must
    call it."""
    config, runtime, folder = job.config, job.runtime, job.folder
    sources, teacher_folder = config.data.train or [], folder.path.absolute() / "teacher"
    files = [teacher_folder / f"{number}.jsonl" for number in range(len(sources))]
    prompts = [read_prompts(config.data, source, "train") for source in sources]
    asked = [[written_row(prompt, "") for prompt in part] for part in prompts]
    models = models_known_at(folder.data_file)
    fingerprint = hashlib.sha256(f"{models}{json.dumps(asked)}".encode()).hexdigest()
    index = teacher_folder / INDEX
    is_theirs = read_json(index)["fingerprint"] == fingerprint if index.is_file() else True  # older runs have none
    runtime.barrier()  # before anybody writes what others look for
    if not (is_theirs and all(file.is_file() for file in files)):
        answers = iter(_answers(job, [prompt for part in prompts for prompt in part]))
        for file, part in zip(files, prompts, strict=True):
            answered = [(prompt, next(answers)) for prompt in part]
            if runtime.is_main:
                teacher_folder.mkdir(exist_ok=True)
                rows = [written_row(prompt, answer) for prompt, answer in answered if answer.strip()]
                write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if runtime.is_main:
            write_json(index, {"fingerprint": fingerprint})
        runtime.barrier()
    written = [written_source(file, source) for file, source in zip(files, sources, strict=True)]
    return replace(job, config=config.model_copy(update={"data": config.data.model_copy(update={"train": written})}))


def written_row(prompt: str | Chat, answer: str) -> dict[str, Any]:
    """Returns the row of a prompt and what the teacher wrote for it: texts, or messages with their tools."""
    if isinstance(prompt, Chat):
        completion = [{"role": "assistant", "content": answer}]
        asked = [
            {**message, "weight": 0} if at in prompt.unlearned else message
            for at, message in enumerate(prompt.messages)
        ]
        return {"prompt": asked, "completion": completion, "tools": prompt.tools}
    return {"prompt": prompt, "completion": answer}


def written_source(file: Path, source: SourceConfig) -> SourceConfig:
    """Returns the source of such rows, in place of the one whose prompts they have."""
    columns = {name: name for name in ("prompt", "completion")}  # before those of `data`
    return SourceConfig(
        path=str(file), weight=source.weight, columns=columns, prompt="{prompt}", completion="{completion}"
    )


def _answers(job: Job[DistillConfig], prompts: Sequence[Any]) -> list[str]:
    config, teacher, runtime = job.config, job.plan.models["teacher"], job.runtime
    runtime.progress.report("loading the teacher")
    tokenizer = load_tokenizer(config.teacher, teacher.tokenizer_at)
    model = load_finished(config.teacher, teacher, None, config.mixed_precision, runtime.device)
    # what data.chat_template names is the student's
    encoder = Encoder(tokenizer, teacher.task, own_template(tokenizer, config.data))
    seed_everything(config.train.seed + runtime.rank)
    generation = config.distill.generation.model_copy(update={"seed": config.train.seed})
    size = config.train.per_device_eval_batch_size
    generator = Generator(runtime, model, tokenizer, generation, size, job.parts)
    return generator.answers(encoder.prompt_ids(prompts, generator.most_tokens), "what the teacher writes")
