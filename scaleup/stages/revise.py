"""Prompts, or answers to them, go in; a model criticises each answer by a principle and writes it again, and rows for
`stage: sft` come out, in revisions.jsonl (Bai et al. 2022, section 3)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scaleup.artifacts.files import write_text
from scaleup.config.stages.revise import ReviseConfig
from scaleup.data.few_shot import asked_rows
from scaleup.data.tokenization import Encoder
from scaleup.distributed.runtime import seed_everything
from scaleup.evaluation.evaluate import reference
from scaleup.evaluation.likelihood import prompt_of
from scaleup.models.adapted import load_finished
from scaleup.models.generation import Generator
from scaleup.models.load import load_tokenizer
from scaleup.records.chats import Chat, as_written
from scaleup.records.constitution import Constitution, read_constitution
from scaleup.records.examples import Example, Opening, PlainText, PromptCompletion
from scaleup.train.job import Job


@dataclass
class Revised:
    """Holds an answer, and how it came to be."""

    prompt: str | Chat
    initial: str
    rounds: list[dict[str, str]] = field(default_factory=list)

    @property
    def now(self) -> str:
        """Returns the newest revision that says anything, with the space before it that the first answer had."""
        said = [self.initial, *(each["revision"] for each in self.rounds)]
        newest = next((text.strip() for text in reversed(said) if text.strip()), "")
        return self.initial[: len(self.initial) - len(self.initial.lstrip())] + newest


def run(job: Job[ReviseConfig]) -> None:
    config, plan, runtime = job.config, job.plan, job.runtime
    constitution = read_constitution(config.revise.constitution, "revise")
    is_given = config.revise.responses == "data"
    rows = [row for row in asked_rows(config.data, "test", is_given) if not isinstance(row, PlainText)]

    runtime.progress.report("loading the model")
    tokenizer = load_tokenizer(config.model, plan.model.tokenizer_at)
    model = load_finished(config.model, plan.model, config.quantization, config.mixed_precision, runtime.device)
    seed_everything(runtime.rank)
    size = config.revise.batch_size
    generator = Generator(runtime, model, tokenizer, config.generation, size, job.parts, keeps=True)
    encoder = Encoder(tokenizer, plan.model.task, config.data)

    def answers(prompts: Sequence[str | Chat], phase: str) -> list[str]:
        return generator.answers(encoder.prompt_ids(prompts, generator.most_tokens), phase)

    prompts = [prompt_of(row) for row in rows]
    initial = [_given(row) for row in rows] if is_given else answers(prompts, "answering")
    revised = [Revised(prompt, text) for prompt, text in zip(prompts, initial, strict=True)]
    for number in range(config.revise.num_revisions):
        _revise(revised, constitution, config.revise.seed, number, answers)

    if runtime.is_main:
        lines = (json.dumps(_row(number, each), ensure_ascii=False) for number, each in enumerate(revised) if each.now)
        write_text(job.folder.path / "revisions.jsonl", "".join(line + "\n" for line in lines))
        shutil.rmtree(job.parts, ignore_errors=True)
        job.finish(_figures(revised, encoder.truncated["prompts"]))
    runtime.barrier()


def _given(row: Example | Opening) -> str:
    return row.completion if isinstance(row, PromptCompletion) else reference(row)


def _revise(revised: Sequence[Revised], constitution: Constitution, seed: int, number: int, answers: Any) -> None:
    """Adds a critique and a revision to each answer, by a principle that is drawn for its row and this round."""
    principles = [constitution.drawn(seed, row, number) for row in range(len(revised))]
    asked = list(zip(revised, principles, strict=True))
    requests = [constitution.critique(each.prompt, each.now, principle) for each, principle in asked]
    critiques = [text.strip() for text in answers(requests, f"criticising ({number + 1})")]
    requests = [
        constitution.revision(each.prompt, each.now, principle, critique)
        for (each, principle), critique in zip(asked, critiques, strict=True)
    ]
    texts = answers(requests, f"revising ({number + 1})")
    for (each, principle), critique, text in zip(asked, critiques, texts, strict=True):
        each.rounds.append({"principle": principle.name, "critique": critique, "revision": text})


def _row(number: int, revised: Revised) -> dict[str, Any]:
    written = {"id": number} | as_written(revised.prompt)
    return written | {"completion": revised.now, "initial": revised.initial, "rounds": revised.rounds}


def _figures(revised: Sequence[Revised], num_truncated: int) -> dict[str, Any]:
    """Returns how many answers there are and how many changed, and the mean words of an answer before and after."""
    kept = [each for each in revised if each.now]
    figures: dict[str, Any] = {
        "prompts": len(revised),
        "changed": sum(each.now.strip() != each.initial.strip() for each in kept),
        "empty_revisions": sum(not each["revision"].strip() for one in revised for each in one.rounds),
        "empty_rows_left_out": len(revised) - len(kept),
        "prompts_truncated": num_truncated,
    }
    if kept:
        figures["words_before"] = sum(len(each.initial.split()) for each in kept) / len(kept)
        figures["words_after"] = sum(len(each.now.split()) for each in kept) / len(kept)
    return figures
